/* A copy into the guest, frames and archive: it may do what it likes below its target, and nothing beside it. */
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../src/copy.h"

static int sandbox, outside;
static struct stat before;

static void make_file(int folder, const char *name)
{
	int fd = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	REQUIRE(fd >= 0 && write(fd, "kept\n", 5) == 5 && close(fd) == 0);
}

static void set_up(void)
{
	struct rlimit descriptors = {.rlim_cur = 2048, .rlim_max = 2048};
	setrlimit(RLIMIT_NOFILE, &descriptors);
	umask(0);
	sandbox = open(SANDBOX, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	REQUIRE(sandbox >= 0 && mkdirat(sandbox, "outside", 0700) == 0);
	outside = openat(sandbox, "outside", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	make_file(outside, "secret");
	REQUIRE(fstatat(outside, "secret", &before, 0) == 0);
}

static int make_target(void)
{
	REQUIRE(mkdirat(sandbox, "target", 0755) == 0);
	int target = openat(sandbox, "target", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	REQUIRE(target >= 0 && mkdirat(target, "d", 0755) == 0);
	make_file(target, "f");
	REQUIRE(symlinkat("../outside", target, "l") == 0 && symlinkat(SANDBOX "/outside/secret", target, "s") == 0);
	return target;
}

/* Names in a folder, other than these. */
static size_t others(int folder, const char *const *known)
{
	int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *entries = fdopendir(copy);
	size_t count = 0;
	REQUIRE(entries);
	for (struct dirent *entry; (entry = readdir(entries));) {
		const char *const *at = known;
		while (*at && strcmp(entry->d_name, *at) != 0)
			at++;
		count += !*at;
	}
	closedir(entries);
	return count;
}

static void check_outside(void)
{
	static const char *const top[] = {".", "..", "outside", "target", NULL}, *const below[] = {".", "..", "secret", NULL};
	struct stat now;
	REQUIRE(others(sandbox, top) == 0 && others(outside, below) == 0);
	REQUIRE(fstatat(outside, "secret", &now, AT_SYMLINK_NOFOLLOW) == 0 && now.st_ino == before.st_ino && now.st_size == 5);
	REQUIRE(now.st_nlink == 1 && now.st_mode == before.st_mode && now.st_uid == before.st_uid && now.st_gid == before.st_gid);
	REQUIRE(now.st_mtim.tv_sec == before.st_mtim.tv_sec && now.st_mtim.tv_nsec == before.st_mtim.tv_nsec);
}

/* No temporary name is left; without owners no set-id bit, no device, and nothing of somebody else's. */
static void check_inside(int folder, bool owners, bool names)
{
	int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *entries = copy < 0 ? NULL : fdopendir(copy);
	REQUIRE(entries || errno == EMFILE);
	for (struct dirent *entry; entries && (entry = readdir(entries));) {
		struct stat status;
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		REQUIRE(names || strncmp(entry->d_name, ".banger-cp-", 11) != 0);
		REQUIRE(fstatat(dirfd(entries), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0);
		REQUIRE(owners || !(status.st_mode & 06000) || S_ISLNK(status.st_mode));
		REQUIRE(owners || S_ISREG(status.st_mode) || S_ISDIR(status.st_mode) || S_ISLNK(status.st_mode));
		REQUIRE(owners || (status.st_uid == before.st_uid && status.st_gid == before.st_gid));
		if (!S_ISDIR(status.st_mode))
			continue;
		int below = openat(dirfd(entries), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		REQUIRE(below >= 0 || errno == EMFILE);
		if (below >= 0) {
			check_inside(below, owners, names);
			close(below);
		}
	}
	if (entries)
		closedir(entries);
}

/* The archive in frames, unless the input brings its own. */
static int stream_of(struct input *input, bool framed)
{
	static uint8_t bytes[1 << 20];
	size_t length = 0;
	if (framed)
		return bytes_as_file(0, input->at, input->left);
	while (input->left && length + WIRE_MAX_PAYLOAD < sizeof bytes - 64) {
		size_t piece = input->left < WIRE_MAX_PAYLOAD ? input->left : WIRE_MAX_PAYLOAD;
		frame_header(bytes + length, FRAME_COPY_DATA, (uint32_t)piece);
		memcpy(bytes + length + WIRE_HEADER_BYTES, input->at, piece);
		length += WIRE_HEADER_BYTES + piece;
		input->at += piece;
		input->left -= piece;
	}
	frame_header(bytes + length, FRAME_COPY_END, 0);
	return bytes_as_file(0, bytes, length + WIRE_HEADER_BYTES);
}

void fuzz_extract(const uint8_t *data, size_t size)
{
	static struct copy_stream stream;
	struct input input = {data, size};
	struct copy_fault fault = {0};
	uint64_t entries = 0;
	uint8_t kind = take_byte(&input);
	if (!sandbox)
		set_up();
	const char *name = kind & 2 ? NULL : kind & 4 ? "d" : kind & 8 ? "l" : "new";
	struct copy_target target = {.parent = make_target(), .name = name, .owners = kind & 1, .shown = "/target"};
	target.replace = !name && (kind & 64);
	if (!(kind & 48))
		input.at = with_right_sums(input.at, input.left);
	bool names = memmem(data, size, ".banger-cp-", 11) != NULL;
	copy_receive(&stream, stream_of(&input, kind & 16), &fault);
	copy_extract(&stream, &target, &entries);
	REQUIRE(fault.error != EROFS);
	REQUIRE(!fault.is_set || (fault.code[0] && fault.message[0]));
	check_outside();
	check_inside(target.parent, kind & 1, names);
	close(target.parent);
	copy_remove(sandbox, "target");
	REQUIRE(faccessat(sandbox, "target", F_OK, AT_SYMLINK_NOFOLLOW) < 0);
}
