/* An archive becomes files, below one folder and nowhere else.
 *
 * Names are walked folder by folder with O_NOFOLLOW. What is new has a temporary name in the first folder
 * that was there before, and is renamed when it is whole: a file after its last byte, a new folder with all
 * that is in it when the archive goes on elsewhere. What is broken off is removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base.h"
#include "copy.h"

#define TEMPORARY_BYTES 40

struct level {
	int fd;
	size_t path_length; /* of path: this folder's own */
	bool fresh;	    /* nobody sees it yet: what is in it needs no temporary names */
	char temporary[TEMPORARY_BYTES]; /* its name until it is whole; "" otherwise */
	bool made;
	bool replaces; /* what has its name, once it is whole */
	bool has_meta;
	uint32_t mode, uid, gid;
	struct timespec times[2];
};

struct extraction {
	struct copy_stream *stream;
	const struct copy_target *target;
	struct tar_reader *reader;
	char path[TAR_MAX_PATH + 1]; /* of the folder on top of the stack */
	struct level levels[COPY_MAX_DEPTH];
	size_t depth; /* 0: not even the top has been opened */
	uint64_t marker;
	uint64_t temporaries;
};

static void fail(struct extraction *extraction, const char *what, const char *path, int error)
{
	char shown[COPY_MESSAGE];
	size_t length = strlen(path);
	const char *tail = length > 600 ? path + length - 600 : path;
	format_text(shown, sizeof shown, "%.300s%s%s", extraction->target->shown, *tail ? "/" : "", tail);
	copy_fail(extraction->stream->fault, "failed", what, shown, error);
}

static bool failed(const struct extraction *extraction)
{
	return extraction->stream->fault->is_set;
}

static void temporary_name(struct extraction *extraction, char *name)
{
	format_text(name, TEMPORARY_BYTES, ".banger-cp-%016llx-%llx", (unsigned long long)extraction->marker,
		    (unsigned long long)extraction->temporaries++);
}

static void set_meta(struct level *level, const struct tar_entry *entry, const struct copy_target *target)
{
	level->has_meta = true;
	level->mode = entry->mode & (target->owners ? 07777U : 01777U);
	level->uid = target->owners ? (uint32_t)entry->uid : 0;
	level->gid = target->owners ? (uint32_t)entry->gid : 0;
	level->times[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
	level->times[1] = (struct timespec){.tv_sec = entry->seconds, .tv_nsec = entry->nanoseconds};
}

/* The new folder and what has its name change places: there is always one of them, and a whole one. */
static void put_in_place(struct extraction *extraction, int parent, const char *temporary, const char *final)
{
	const char *aside = extraction->target->aside;
	if (syscall(SYS_renameat2, parent, temporary, parent, final, RENAME_EXCHANGE) < 0) {
		if (errno != ENOENT || renameat(parent, temporary, parent, final) < 0) {
			fail(extraction, "cannot put in its place", extraction->path, errno);
			copy_remove(parent, temporary);
		}
	} else if (!aside) {
		copy_remove(parent, temporary);
	} else if (syscall(SYS_renameat2, parent, temporary, parent, aside, RENAME_NOREPLACE) < 0) {
		fail(extraction, "cannot put aside what was at", extraction->path, errno);
	}
}

/* The folder below the top one is done: gets its owner, mode and time, and where it is new, its name. */
static void pop(struct extraction *extraction)
{
	struct level *level = &extraction->levels[--extraction->depth];
	bool top = extraction->depth == 0;
	int parent = top ? extraction->target->parent : extraction->levels[extraction->depth - 1].fd;
	size_t parent_length = top ? 0 : extraction->levels[extraction->depth - 1].path_length;
	char *name = extraction->path + parent_length + (parent_length ? 1 : 0);
	if (level->made && !level->has_meta && !failed(extraction) && fchmod(level->fd, 0755) < 0)
		fail(extraction, "cannot set the mode of", extraction->path, errno);
	if (level->has_meta && !failed(extraction)) {
		bool owned = !extraction->target->owners || fchown(level->fd, level->uid, level->gid) == 0;
		if (!owned || fchmod(level->fd, level->mode) < 0 || futimens(level->fd, level->times) < 0)
			fail(extraction, "cannot set owner, mode and time of", extraction->path, errno);
	}
	close(level->fd);
	if (level->temporary[0]) {
		const char *final = top ? extraction->target->name : name;
		bool replaces = level->replaces && !failed(extraction);
		if (replaces)
			put_in_place(extraction, parent, level->temporary, final);
		else if (!failed(extraction) && renameat(parent, level->temporary, parent, final) < 0)
			fail(extraction, "cannot name", extraction->path, errno);
		if (failed(extraction) && !replaces) /* where it replaces, what has the name may be the old one */
			copy_remove(parent, level->temporary);
	}
	extraction->path[parent_length] = 0;
}

/* Opens, or makes, the folder `name` (the end of path) and puts it on the stack. */
static bool push(struct extraction *extraction, int parent, bool fresh, const char *name)
{
	struct level *level = &extraction->levels[extraction->depth];
	*level = (struct level){.fd = -1, .path_length = strlen(extraction->path)};
	const char *made = name;
	if (fresh) {
		level->fresh = true;
	} else {
		level->replaces = extraction->target->replace && extraction->depth == 1;
		if (!level->replaces)
			level->fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (level->replaces || (level->fd < 0 && errno == ENOENT)) {
			temporary_name(extraction, level->temporary);
			made = level->temporary;
			level->fresh = true;
		} else if (level->fd < 0) {
			bool other = errno == ENOTDIR || errno == ELOOP;
			fail(extraction, other ? "is there already and is no folder:" : "cannot open", extraction->path, other ? 0 : errno);
			return false;
		}
	}
	if (level->fd < 0) {
		/* Nobody else's until it has its mode: what is in it may be private by it. */
		level->made = mkdirat(parent, made, 0700) == 0;
		if (!level->made && !(fresh && errno == EEXIST)) {
			fail(extraction, "cannot make the folder", extraction->path, errno);
			return false;
		}
		level->fd = openat(parent, made, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (level->fd < 0) {
			bool other = errno == ENOTDIR || errno == ELOOP;
			fail(extraction, other ? "is a file or a link in the same archive, and no folder:" : "cannot open",
			     extraction->path, other ? 0 : errno);
			if (level->temporary[0])
				copy_remove(parent, level->temporary);
			return false;
		}
	}
	extraction->depth++;
	return true;
}

/* The top: the target itself as a folder, or below its parent under its name. */
static bool push_top(struct extraction *extraction)
{
	const struct copy_target *target = extraction->target;
	extraction->path[0] = 0;
	if (target->name)
		return push(extraction, target->parent, false, target->name);
	extraction->levels[0] = (struct level){.fd = dup(target->parent)};
	if (extraction->levels[0].fd < 0) {
		fail(extraction, "cannot open", "", errno);
		return false;
	}
	extraction->depth = 1;
	return true;
}

/* Makes the folder of this path (length bytes of it; 0 is the top) the one on top of the stack. */
static bool enter(struct extraction *extraction, const char *path, size_t length)
{
	while (extraction->depth) {
		size_t held = extraction->levels[extraction->depth - 1].path_length;
		if (held == 0 || (held <= length && !memcmp(extraction->path, path, held) && (held == length || path[held] == '/')))
			break;
		pop(extraction);
	}
	if (failed(extraction) || (!extraction->depth && !push_top(extraction)))
		return false;
	for (;;) {
		struct level *level = &extraction->levels[extraction->depth - 1];
		size_t start = level->path_length;
		if (start == length)
			return true;
		if (extraction->depth == COPY_MAX_DEPTH) {
			fail(extraction, "folders lie too deep:", path, 0);
			return false;
		}
		size_t at = start ? start + 1 : 0, end = at;
		while (end < length && path[end] != '/')
			end++;
		if (start)
			extraction->path[start] = '/';
		memcpy(extraction->path + at, path + at, end - at);
		extraction->path[end] = 0;
		if (!push(extraction, level->fd, level->fresh, extraction->path + at)) {
			extraction->path[start] = 0;
			return false;
		}
	}
}

/* "./a//b/" becomes "a/b", "." becomes "". False for what may lead elsewhere. */
static bool normalize(char *path)
{
	char *to = path;
	if (*path == '/')
		return false;
	for (const char *at = path; *at;) {
		size_t length = strcspn(at, "/");
		if (length == 2 && at[0] == '.' && at[1] == '.')
			return false;
		if (length && !(length == 1 && *at == '.')) {
			if (to != path)
				*to++ = '/';
			memmove(to, at, length);
			to += length;
		}
		at += length + (at[length] == '/');
	}
	*to = 0;
	return true;
}

/* Where an entry goes: a folder, and its name there. */
struct place {
	int folder;
	const char *name;
	bool fresh;
	char temporary[TEMPORARY_BYTES];
};

static bool find_place(struct extraction *extraction, const char *path, struct place *place)
{
	const char *slash = strrchr(path, '/');
	if (!*path) { /* the top is no folder */
		if (!extraction->target->name || extraction->depth) {
			fail(extraction, "an archive's top must be a folder here:", "", 0);
			return false;
		}
		*place = (struct place){.folder = extraction->target->parent, .name = extraction->target->name};
		return true;
	}
	if (!enter(extraction, path, slash ? (size_t)(slash - path) : 0))
		return false;
	const struct level *level = &extraction->levels[extraction->depth - 1];
	*place = (struct place){.folder = level->fd, .name = slash ? slash + 1 : path, .fresh = level->fresh};
	return true;
}

/* The name to make it under: in a folder that nobody sees yet its own. */
static const char *name_for(struct extraction *extraction, struct place *place)
{
	if (place->fresh)
		return place->name;
	temporary_name(extraction, place->temporary);
	return place->temporary;
}

/* After something was made under name_for's name, well or not. */
static void settle(struct extraction *extraction, struct place *place, const char *path)
{
	const char *made = place->temporary[0] ? place->temporary : place->name;
	if (failed(extraction)) {
		unlinkat(place->folder, made, 0);
	} else if (place->temporary[0]) {
		if (renameat(place->folder, made, place->folder, place->name) < 0)
			fail(extraction, errno == EISDIR ? "is a folder already:" : "cannot name", path, errno == EISDIR ? 0 : errno);
		/* Where both were names of one file, rename leaves both. */
		unlinkat(place->folder, made, 0);
	}
}

static bool write_all(int fd, const uint8_t *bytes, size_t length, uint64_t offset)
{
	while (length) {
		ssize_t wrote = pwrite(fd, bytes, length, (off_t)offset);
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			return false;
		bytes += wrote;
		length -= (size_t)wrote;
		offset += (uint64_t)wrote;
	}
	return true;
}

static void write_extent(struct extraction *extraction, int fd, uint64_t offset, uint64_t length, const char *path)
{
	while (length) {
		const uint8_t *bytes;
		ssize_t got = tar_data(extraction->reader, &bytes);
		if (got <= 0) {
			fail(extraction, "the copy broke off in", path, 0);
			return;
		}
		size_t piece = (uint64_t)got < length ? (size_t)got : (size_t)length;
		if (!write_all(fd, bytes, piece, offset)) {
			fail(extraction, "cannot write", path, errno);
			return;
		}
		tar_took(extraction->reader, piece);
		offset += piece;
		length -= piece;
	}
}

static void set_file_meta(struct extraction *extraction, int fd, const struct tar_entry *entry, const char *path)
{
	bool owners = extraction->target->owners;
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = entry->seconds, .tv_nsec = entry->nanoseconds}};
	/* Owner first: a change of owner takes set-id bits away. */
	if ((owners && fchown(fd, (uid_t)entry->uid, (gid_t)entry->gid) < 0) ||
	    (owners && (entry->mode & 07000) && fchmod(fd, entry->mode) < 0) || futimens(fd, times) < 0)
		fail(extraction, "cannot set owner, mode and time of", path, errno);
}

static void make_file(struct extraction *extraction, const struct tar_entry *entry, struct place *place)
{
	const char *name = name_for(extraction, place);
	int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
	int fd = openat(place->folder, name, flags, entry->mode & 0777);
	if (fd < 0 && errno == EEXIST && place->fresh) { /* twice in one archive: the later one counts */
		place->fresh = false;
		name = name_for(extraction, place);
		fd = openat(place->folder, name, flags, entry->mode & 0777);
	}
	if (fd < 0) {
		fail(extraction, "cannot make", entry->path, errno);
		return;
	}
	if (!entry->sparse) {
		write_extent(extraction, fd, 0, entry->stored, entry->path);
	} else {
		for (size_t i = 0; i < entry->extent_count && !failed(extraction); i++)
			write_extent(extraction, fd, entry->extents[i].offset, entry->extents[i].length, entry->path);
		if (!failed(extraction) && ftruncate(fd, (off_t)entry->size) < 0)
			fail(extraction, "cannot write", entry->path, errno);
	}
	if (!failed(extraction))
		set_file_meta(extraction, fd, entry, entry->path);
	if (close(fd) < 0)
		fail(extraction, "cannot write", entry->path, errno);
	settle(extraction, place, entry->path);
}

/* The folder of a hard link's target: a descriptor that is the caller's to close. */
static int find_target(struct extraction *extraction, const char *link, const char **name)
{
	const char *slash = strrchr(link, '/');
	size_t length = slash ? (size_t)(slash - link) : 0;
	*name = slash ? slash + 1 : link;
	size_t depth = extraction->depth;
	while (depth > 1) {
		size_t held = extraction->levels[depth - 1].path_length;
		if (held <= length && !memcmp(extraction->path, link, held) && (held == length || link[held] == '/'))
			break;
		depth--;
	}
	int fd = fcntl(extraction->levels[depth - 1].fd, F_DUPFD_CLOEXEC, 3);
	size_t at = extraction->levels[depth - 1].path_length;
	while (fd >= 0 && at < length) {
		char folder[256];
		at += link[at] == '/';
		size_t end = at;
		while (end < length && link[end] != '/')
			end++;
		bool fits = format_text(folder, sizeof folder, "%.*s", (int)(end - at), link + at);
		int below = fits ? openat(fd, folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
		int why = fits ? errno : ENAMETOOLONG;
		close(fd);
		errno = why;
		fd = below;
		at = end;
	}
	return fd;
}

static void make_link(struct extraction *extraction, struct tar_entry *entry, struct place *place)
{
	const char *target_name;
	if (!normalize(entry->link) || !entry->link[0]) {
		fail(extraction, "a hard link to outside of what is copied:", entry->path, 0);
		return;
	}
	if (!extraction->depth) {
		fail(extraction, "a hard link to nothing:", entry->path, 0);
		return;
	}
	int folder = find_target(extraction, entry->link, &target_name);
	if (folder < 0) {
		fail(extraction, "cannot find the target of the hard link", entry->path, errno);
		return;
	}
	const char *name = name_for(extraction, place);
	int made = linkat(folder, target_name, place->folder, name, 0);
	if (made < 0 && errno == EEXIST && place->fresh) {
		place->fresh = false;
		name = name_for(extraction, place);
		made = linkat(folder, target_name, place->folder, name, 0);
	}
	if (made < 0)
		fail(extraction, "cannot make the hard link", entry->path, errno);
	close(folder);
	settle(extraction, place, entry->path);
}

static int make_node(const struct tar_entry *entry, int folder, const char *name)
{
	mode_t mode = entry->mode & 07777; /* whole, for there is no umask here: a chmod by name might meet another file */
	if (entry->type == TAR_SYMLINK)
		return symlinkat(entry->link, folder, name);
	if (entry->type == TAR_FIFO)
		return mknodat(folder, name, S_IFIFO | mode, 0);
	dev_t device = makedev((unsigned)entry->major, (unsigned)entry->minor);
	return mknodat(folder, name, (entry->type == TAR_CHARACTER ? S_IFCHR : S_IFBLK) | mode, device);
}

/* Symbolic links, pipes, devices. */
static void make_other(struct extraction *extraction, const struct tar_entry *entry, struct place *place)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = entry->seconds, .tv_nsec = entry->nanoseconds}};
	const char *name = name_for(extraction, place);
	int made = make_node(entry, place->folder, name);
	if (made < 0 && errno == EEXIST && place->fresh) {
		place->fresh = false;
		name = name_for(extraction, place);
		made = make_node(entry, place->folder, name);
	}
	if (made < 0) {
		fail(extraction, "cannot make", entry->path, errno);
		return;
	}
	bool owners = extraction->target->owners;
	if ((owners && fchownat(place->folder, name, (uid_t)entry->uid, (gid_t)entry->gid, AT_SYMLINK_NOFOLLOW) < 0) ||
	    utimensat(place->folder, name, times, AT_SYMLINK_NOFOLLOW) < 0)
		fail(extraction, "cannot set owner, mode and time of", entry->path, errno);
	settle(extraction, place, entry->path);
}

static void make_folder(struct extraction *extraction, const struct tar_entry *entry)
{
	if (!enter(extraction, entry->path, strlen(entry->path)))
		return;
	struct level *level = &extraction->levels[extraction->depth - 1];
	/* One that was there before stays as it was, unless everything is to be the same. */
	if (level->fresh || extraction->target->owners)
		set_meta(level, entry, extraction->target);
}

static void extract_entry(struct extraction *extraction, struct tar_entry *entry)
{
	struct place place;
	if (!normalize(entry->path)) {
		fail(extraction, "a name that leads out of what is copied:", entry->path, 0);
		return;
	}
	if (entry->type == TAR_FOLDER) {
		make_folder(extraction, entry);
		return;
	}
	bool special = entry->type == TAR_FIFO || entry->type == TAR_CHARACTER || entry->type == TAR_BLOCK_DEVICE;
	if ((special && !extraction->target->owners) || !find_place(extraction, entry->path, &place))
		return;
	if (entry->type == TAR_FILE)
		make_file(extraction, entry, &place);
	else if (entry->type == TAR_LINK)
		make_link(extraction, entry, &place);
	else
		make_other(extraction, entry, &place);
}

void copy_extract(struct copy_stream *stream, const struct copy_target *target, uint64_t *entries)
{
	struct extraction *extraction = calloc(1, sizeof *extraction);
	struct tar_reader *reader = calloc(1, sizeof *reader);
	enum tar_result result = TAR_BAD;
	if (!extraction || !reader || getrandom(&extraction->marker, sizeof extraction->marker, 0) < 0) {
		copy_fail(stream->fault, "failed", "no memory", "", ENOMEM);
	} else {
		extraction->stream = stream;
		extraction->target = target;
		extraction->reader = reader;
		reader->source = &stream->source;
		while (!failed(extraction) && (result = tar_next(reader)) == TAR_ENTRY) {
			extract_entry(extraction, &reader->entry);
			++*entries;
		}
		if (result == TAR_BAD && !failed(extraction))
			copy_fail(stream->fault, "bad_request", "the archive cannot be read:", reader->why, 0);
		/* What is new gets its name only when the host says that this was all. */
		if (!failed(extraction))
			copy_finish_receiving(stream);
		while (extraction->depth)
			pop(extraction);
		free(reader->entry.extents);
	}
	free(reader);
	free(extraction);
}
