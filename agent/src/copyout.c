/* A tree becomes an archive: folders before what is in them, hard links by name after the first, holes left out.
 *
 * Links are archived, never followed; a folder is entered by O_NOFOLLOW. What the kernel makes up (proc, sys
 * and their like) is an empty folder when it is met on the way.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base.h"
#include "copy.h"

#define MAX_LINKS 1048576       /* files with more than one name that are remembered; past that each is sent whole */
#define MAX_LINK_BYTES (64 << 20)
#define MAX_SENT_EXTENTS 65536 /* past that the rest of a sparse file is sent with its holes */
#define MADE_UP_BYTES (1 << 20)

struct known_link {
	dev_t device;
	ino_t inode;
	char *path;
};

struct archive {
	struct copy_stream *stream;
	bool exact_times;
	uint64_t entries;
	struct tar_entry entry;
	size_t path_length; /* of entry.path */
	struct known_link *links; /* a hash table, open addressing, at most half full */
	size_t link_room, link_count, link_bytes;
	struct tar_extent *extents;
	uint8_t head[TAR_HEAD_BYTES];
};

static void fail(struct archive *archive, const char *what, int error)
{
	copy_fail(archive->stream->fault, error == ENOENT ? "not_found" : "failed", what, archive->entry.path, error);
}

static bool failed(const struct archive *archive)
{
	return archive->stream->fault->is_set;
}

static size_t slot_of(const struct archive *archive, dev_t device, ino_t inode)
{
	uint64_t hash = ((uint64_t)device * 0x9e3779b97f4a7c15ULL) ^ ((uint64_t)inode * 0xc2b2ae3d27d4eb4fULL);
	size_t slot = (size_t)(hash ^ hash >> 29) & (archive->link_room - 1);
	while (archive->links[slot].path && (archive->links[slot].device != device || archive->links[slot].inode != inode))
		slot = (slot + 1) & (archive->link_room - 1);
	return slot;
}

static bool grow_links(struct archive *archive)
{
	struct archive bigger = {.link_room = archive->link_room ? archive->link_room * 2 : 1024};
	bigger.links = calloc(bigger.link_room, sizeof *bigger.links);
	if (!bigger.links)
		return false;
	for (size_t i = 0; i < archive->link_room; i++)
		if (archive->links[i].path)
			bigger.links[slot_of(&bigger, archive->links[i].device, archive->links[i].inode)] = archive->links[i];
	free(archive->links);
	archive->links = bigger.links;
	archive->link_room = bigger.link_room;
	return true;
}

/* The name under which this file was sent before; NULL the first time, which is remembered. */
static const char *link_of(struct archive *archive, const struct stat *status)
{
	if (archive->link_count * 2 >= archive->link_room && !grow_links(archive))
		return NULL;
	struct known_link *link = &archive->links[slot_of(archive, status->st_dev, status->st_ino)];
	if (link->path)
		return link->path;
	if (archive->link_count == MAX_LINKS || archive->link_bytes + archive->path_length > MAX_LINK_BYTES)
		return NULL;
	link->path = strdup(archive->entry.path);
	if (link->path) {
		link->device = status->st_dev;
		link->inode = status->st_ino;
		archive->link_count++;
		archive->link_bytes += archive->path_length + 1;
	}
	return NULL;
}

static void take_status(struct tar_entry *entry, const struct stat *status, enum tar_type type)
{
	entry->type = (char)type;
	entry->mode = status->st_mode & 07777;
	entry->uid = status->st_uid;
	entry->gid = status->st_gid;
	entry->seconds = status->st_mtim.tv_sec;
	entry->nanoseconds = (uint32_t)status->st_mtim.tv_nsec;
	entry->stored = entry->size = 0;
	entry->major = entry->minor = 0;
	entry->sparse = false;
	entry->extent_count = 0;
	entry->link[0] = 0;
}

static bool put_head(struct archive *archive, size_t map_bytes)
{
	struct tar_entry *entry = &archive->entry;
	size_t length = tar_head(archive->head, entry, map_bytes, archive->exact_times);
	if (!length) {
		fail(archive, "the name is too long:", 0);
		return false;
	}
	archive->entries++;
	return copy_put(archive->stream, archive->head, length);
}

/* length bytes of a file, from where it stands at. */
static void put_bytes_of(struct archive *archive, int fd, uint64_t offset, uint64_t length)
{
	while (length) {
		size_t room;
		uint8_t *into = copy_room(archive->stream, &room);
		if (!into)
			return;
		if (room > length)
			room = (size_t)length;
		ssize_t got = pread(fd, into, room, (off_t)offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			fail(archive, got ? "cannot read" : "became shorter while it was read:", got ? errno : 0);
			return;
		}
		copy_wrote(archive->stream, (size_t)got);
		offset += (uint64_t)got;
		length -= (uint64_t)got;
	}
}

static void put_padding(struct archive *archive, uint64_t size)
{
	static const uint8_t zeros[TAR_BLOCK];
	size_t rest = (size_t)(size % TAR_BLOCK);
	if (rest && !failed(archive))
		copy_put(archive->stream, zeros, TAR_BLOCK - rest);
}

/* Where a file has data. False where the file system cannot say, or there are no holes. */
static bool find_extents(struct archive *archive, int fd)
{
	struct tar_entry *entry = &archive->entry;
	off_t size = (off_t)entry->size, at = 0;
	if (!archive->extents)
		archive->extents = calloc(MAX_SENT_EXTENTS, sizeof *archive->extents);
	if (!archive->extents)
		return false;
	entry->extents = archive->extents;
	entry->extent_count = 0;
	entry->stored = 0;
	while (at < size) {
		off_t data = lseek(fd, at, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			break;
		if (data < 0)
			return false;
		off_t hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return false;
		if (hole > size || entry->extent_count == MAX_SENT_EXTENTS - 2)
			hole = size;
		if (data >= size)
			break;
		entry->extents[entry->extent_count++] = (struct tar_extent){.offset = (uint64_t)data, .length = (uint64_t)(hole - data)};
		entry->stored += (uint64_t)(hole - data);
		at = hole;
	}
	/* A hole at the end: GNU tar knows the size by an empty piece there. */
	if (at < size)
		entry->extents[entry->extent_count++] = (struct tar_extent){.offset = entry->size};
	return entry->stored < entry->size;
}

static void put_sparse(struct archive *archive, int fd)
{
	struct tar_entry *entry = &archive->entry;
	size_t map_bytes = 0;
	entry->sparse = true;
	char *map = tar_map(entry, &map_bytes);
	if (!map)
		fail(archive, "no memory for", ENOMEM);
	else if (put_head(archive, map_bytes) && copy_put(archive->stream, map, map_bytes))
		for (size_t i = 0; i < entry->extent_count && !failed(archive); i++)
			put_bytes_of(archive, fd, entry->extents[i].offset, entry->extents[i].length);
	free(map);
	put_padding(archive, entry->stored);
}

/* A file of proc and the like says that it is empty, and is not. */
static bool put_made_up(struct archive *archive, int fd)
{
	struct tar_entry *entry = &archive->entry;
	uint8_t *bytes = malloc(MADE_UP_BYTES);
	size_t length = 0;
	ssize_t got = bytes ? 1 : -1;
	while (got > 0 && length < MADE_UP_BYTES) {
		got = read(fd, bytes + length, MADE_UP_BYTES - length);
		length += got > 0 ? (size_t)got : 0;
	}
	if (got < 0 || length == MADE_UP_BYTES)
		fail(archive, got < 0 ? "cannot read" : "has no size that is known beforehand:", got < 0 ? errno : 0);
	entry->size = entry->stored = length;
	if (!failed(archive) && put_head(archive, 0) && copy_put(archive->stream, bytes, length))
		put_padding(archive, length);
	free(bytes);
	return !failed(archive);
}

static void put_file(struct archive *archive, int fd, const struct stat *status)
{
	struct tar_entry *entry = &archive->entry;
	take_status(entry, status, TAR_FILE);
	if (status->st_nlink > 1) {
		const char *first = link_of(archive, status);
		if (first) {
			entry->type = TAR_LINK;
			format_text(entry->link, sizeof entry->link, "%s", first);
			put_head(archive, 0);
			return;
		}
	}
	entry->size = entry->stored = (uint64_t)status->st_size;
	struct statfs where;
	if (!status->st_size && !status->st_blocks && fstatfs(fd, &where) == 0 && where.f_bsize && !where.f_blocks) {
		put_made_up(archive, fd);
		return;
	}
	if ((uint64_t)status->st_blocks * 512 < entry->size && find_extents(archive, fd)) {
		put_sparse(archive, fd);
		return;
	}
	entry->stored = entry->size;
	if (put_head(archive, 0))
		put_bytes_of(archive, fd, 0, entry->stored);
	put_padding(archive, entry->stored);
}

/* True where the kernel makes up what is in the folder, and another file system begins. */
static bool is_made_up(int fd, const struct stat *status, dev_t above)
{
	static const uint32_t kinds[] = {
		0x9fa0, 0x62656572, 0x1cd1, 0x63677270, 0x27e0eb, 0x64626720, 0x74726163, 0x73636673, 0xcafe4a11,
		0x6165676c, 0x19800202, 0x62656570, 0xde5e81e4, 0x42494e4d, 0x187, 0x65735543, 0xf97cff8c, 0x6e736673,
	}; /* proc, sysfs, devpts, cgroup 2 and 1, debugfs, tracefs, securityfs, bpf, pstore, mqueue, configfs,
	      efivarfs, binfmt_misc, autofs, fusectl, selinuxfs, nsfs */
	struct statfs where;
	if (status->st_dev == above || fstatfs(fd, &where) < 0)
		return false;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if ((uint32_t)where.f_type == kinds[i])
			return true;
	return false;
}

static void put_below(struct archive *archive, int folder, dev_t device, int depth);

static void put_folder(struct archive *archive, int fd, const struct stat *status, bool enter, int depth)
{
	take_status(&archive->entry, status, TAR_FOLDER);
	if (depth > COPY_MAX_DEPTH) {
		fail(archive, "folders lie too deep:", 0);
		close(fd);
	} else if (put_head(archive, 0) && enter) {
		put_below(archive, fd, status->st_dev, depth);
	} else {
		close(fd);
	}
}

static void put_symlink(struct archive *archive, int folder, const char *name, const struct stat *status)
{
	struct tar_entry *entry = &archive->entry;
	take_status(entry, status, TAR_SYMLINK);
	ssize_t length = readlinkat(folder, name, entry->link, sizeof entry->link - 1);
	if (length < 0) {
		fail(archive, "cannot read", errno);
		return;
	}
	entry->link[length] = 0;
	put_head(archive, 0);
}

static void put_special(struct archive *archive, const struct stat *status)
{
	enum tar_type type = S_ISFIFO(status->st_mode) ? TAR_FIFO : S_ISCHR(status->st_mode) ? TAR_CHARACTER : TAR_BLOCK_DEVICE;
	take_status(&archive->entry, status, type);
	if (type != TAR_FIFO) {
		archive->entry.major = major(status->st_rdev);
		archive->entry.minor = minor(status->st_rdev);
	}
	put_head(archive, 0);
}

/* One name of a folder, which is the end of entry.path. kind: what the folder says it is, or DT_UNKNOWN. */
static void put_name(struct archive *archive, int folder, const char *name, unsigned char kind, dev_t device, int depth)
{
	struct stat status;
	if (kind != DT_REG && kind != DT_DIR) {
		if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) < 0) {
			if (errno != ENOENT)
				fail(archive, "cannot look at", errno);
			return; /* gone meanwhile */
		}
		if (S_ISLNK(status.st_mode)) {
			put_symlink(archive, folder, name, &status);
			return;
		}
		if (S_ISSOCK(status.st_mode)) {
			copy_note(archive->stream, "a socket is left out:", archive->entry.path);
			return;
		}
		if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
			put_special(archive, &status);
			return;
		}
	}
	int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return;
	if (fd < 0 || fstat(fd, &status) < 0) {
		fail(archive, "cannot open", errno);
	} else if (S_ISDIR(status.st_mode)) {
		put_folder(archive, fd, &status, !is_made_up(fd, &status, device), depth + 1);
		return;
	} else if (S_ISREG(status.st_mode)) {
		put_file(archive, fd, &status);
	}
	if (fd >= 0)
		close(fd);
}

/* All names of a folder; closes it. */
static void put_below(struct archive *archive, int folder, dev_t device, int depth)
{
	struct tar_entry *entry = &archive->entry;
	size_t above = archive->path_length;
	bool top = above == 1 && entry->path[0] == '.';
	size_t at = top ? 0 : above + 1;
	DIR *entries = fdopendir(folder);
	if (!entries) {
		fail(archive, "cannot read", errno);
		close(folder);
		return;
	}
	while (!failed(archive)) {
		errno = 0;
		struct dirent *found = readdir(entries);
		if (!found) {
			if (errno)
				fail(archive, "cannot read", errno);
			break;
		}
		size_t length = strlen(found->d_name);
		if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, ".."))
			continue;
		if (at + length > TAR_MAX_PATH) {
			fail(archive, "names are too long below", 0);
			break;
		}
		if (!top)
			entry->path[above] = '/';
		memcpy(entry->path + at, found->d_name, length + 1);
		archive->path_length = at + length;
		put_name(archive, dirfd(entries), found->d_name, found->d_type, device, depth);
		if (failed(archive))
			break; /* the message has the path */
		entry->path[above] = 0;
		if (top)
			entry->path[0] = '.';
		archive->path_length = above;
	}
	closedir(entries);
}

static void put_top(struct archive *archive, const char *path, bool follow)
{
	struct stat status;
	struct copy_fault *fault = archive->stream->fault;
	struct builder started = {0};
	if ((follow ? stat : lstat)(path, &status) < 0) {
		copy_fail(fault, errno == ENOENT || errno == ENOTDIR ? "not_found" : "failed", "", path, errno);
		return;
	}
	int fd = -1;
	if (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)) {
		fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
		if (fd < 0 || fstat(fd, &status) < 0) {
			copy_fail(fault, "failed", "", path, errno);
			if (fd >= 0)
				close(fd);
			return;
		}
	}
	put_number(&started, COPY_STARTED_MODE, status.st_mode);
	if (frame_write(archive->stream->fd, FRAME_COPY_STARTED, started.bytes, started.length, now_ms() + 10000) != IO_OK) {
		fault->host_gone = true;
		copy_fail(fault, "failed", "the host has gone", "", 0);
	} else if (S_ISDIR(status.st_mode)) {
		put_folder(archive, fd, &status, true, 0);
		return;
	} else if (S_ISREG(status.st_mode)) {
		put_file(archive, fd, &status);
	} else if (S_ISLNK(status.st_mode)) {
		put_symlink(archive, AT_FDCWD, path, &status);
	} else if (S_ISSOCK(status.st_mode)) {
		copy_fail(fault, "failed", "a socket cannot be copied:", path, 0);
	} else {
		put_special(archive, &status);
	}
	if (fd >= 0)
		close(fd);
}

void copy_archive(struct copy_stream *stream, const char *path, const char *prefix, uint64_t flags, uint64_t *entries)
{
	static const uint8_t end[2 * TAR_BLOCK];
	struct archive *archive = calloc(1, sizeof *archive);
	if (!archive) {
		copy_fail(stream->fault, "failed", "no memory", "", ENOMEM);
		return;
	}
	archive->stream = stream;
	archive->exact_times = flags & COPY_FLAG_EXACT_TIMES;
	format_text(archive->entry.path, sizeof archive->entry.path, "%s", *prefix ? prefix : ".");
	archive->path_length = strlen(archive->entry.path);
	size_t length = strlen(path);
	/* With a slash behind it, or /., a link is not what is meant. */
	bool slashed = length && (path[length - 1] == '/' || (length > 1 && path[length - 1] == '.' && path[length - 2] == '/'));
	put_top(archive, path, slashed || (flags & COPY_FLAG_FOLLOW));
	if (!failed(archive) && copy_put(stream, end, sizeof end))
		copy_flush(stream);
	*entries = archive->entries;
	for (size_t i = 0; i < archive->link_room; i++)
		free(archive->links[i].path);
	free(archive->links);
	free(archive->extents);
	free(archive);
}
