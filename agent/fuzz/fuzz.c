/* The fuzzer's door: BANGER_FUZZ names the target. libFuzzer brings main. */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/mount.h>

#include "../src/base.h"
#include "../src/shared.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The fuzzer's own test. */
static void broken(const uint8_t *data, size_t size)
{
	REQUIRE(!size || data[0]);
}

static const struct target {
	const char *name;
	void (*run)(const uint8_t *data, size_t size);
} targets[] = {
	{"frames", fuzz_frames}, {"exec", fuzz_exec},	  {"small", fuzz_small},     {"stream", fuzz_stream},
	{"keeper", fuzz_keeper}, {"view", fuzz_view},	  {"sessions", fuzz_sessions}, {"records", fuzz_records},
	{"copy", fuzz_copy},	 {"tar", fuzz_tar},	  {"extract", fuzz_extract},   {"config", fuzz_config},
	{"ports", fuzz_ports},	 {"users", fuzz_users}, {"sshd", fuzz_sshd},	       {"probe", fuzz_probe},
	{"broken", broken},
};

static const struct target *target;
static int slots[8];

int bytes_as_file(int slot, const uint8_t *bytes, size_t length)
{
	if (!slots[slot])
		slots[slot] = memfd_create("input", MFD_CLOEXEC);
	REQUIRE(slots[slot] > 0 && ftruncate(slots[slot], 0) == 0);
	REQUIRE(!length || pwrite(slots[slot], bytes, length, 0) == (ssize_t)length);
	REQUIRE(lseek(slots[slot], 0, SEEK_SET) == 0);
	return slots[slot];
}

const char *path_of_bytes(int slot)
{
	static char paths[8][32];
	format_text(paths[slot], sizeof paths[slot], "/proc/self/fd/%d", slots[slot]);
	return paths[slot];
}

int fuzz_kill(pid_t pid, int number)
{
	REQUIRE(pid < -1 && number >= 0 && number <= 64);
	return 0;
}

uint8_t take_byte(struct input *input)
{
	if (!input->left)
		return 0;
	input->left--;
	return *input->at++;
}

const uint8_t *take_piece(struct input *input, size_t *length)
{
	*length = take_byte(input);
	*length |= (size_t)take_byte(input) << 8;
	if (*length > input->left)
		*length = input->left;
	const uint8_t *piece = input->at;
	input->at += *length;
	input->left -= *length;
	return piece;
}

static void map_to_root(void)
{
	char line[32];
	unsigned uid = geteuid(), gid = getegid();
	REQUIRE(unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0);
	REQUIRE(write_file("/proc/self/setgroups", "deny") == 0);
	format_text(line, sizeof line, "0 %u 1", uid);
	REQUIRE(write_file("/proc/self/uid_map", line) == 0);
	format_text(line, sizeof line, "0 %u 1", gid);
	REQUIRE(write_file("/proc/self/gid_map", line) == 0);
}

/* In a mount namespace of its own everything is read-only but the working directory, which is libFuzzer's, and
 * a tmpfs: a reader that escapes from where it was sent fails, and is seen. */
void enter_sandbox(void)
{
	char here[4096];
	struct mount_attr closed = {.attr_set = MOUNT_ATTR_RDONLY}, opened = {.attr_clr = MOUNT_ATTR_RDONLY};
	REQUIRE(getcwd(here, sizeof here) && strcmp(here, SANDBOX) != 0);
	if (geteuid() == 0)
		REQUIRE(unshare(CLONE_NEWNS) == 0);
	else
		map_to_root();
	REQUIRE(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
	REQUIRE(mount(here, here, NULL, MS_BIND, NULL) == 0);
	int kept = open(here, O_PATH | O_DIRECTORY | O_CLOEXEC);
	REQUIRE(kept >= 0 && syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &closed, sizeof closed) == 0);
	REQUIRE(syscall(SYS_mount_setattr, kept, "", AT_EMPTY_PATH, &opened, sizeof opened) == 0);
	/* The folder may lie below /tmp: it is reached by its descriptor from here on. */
	REQUIRE(fchdir(kept) == 0 && close(kept) == 0);
	REQUIRE(mount("tmpfs", SANDBOX, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64m,nr_inodes=4096,mode=0700") == 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *name = getenv("BANGER_FUZZ");
	(void)argc;
	(void)argv;
	for (size_t i = 0; name && i < sizeof targets / sizeof *targets; i++)
		if (!strcmp(targets[i].name, name))
			target = &targets[i];
	if (!target) {
		fprintf(stderr, "BANGER_FUZZ names no target; there are:");
		for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
			fprintf(stderr, " %s", targets[i].name);
		fprintf(stderr, "\n");
		exit(2);
	}
	log_to_stderr();
	shared_create();
	shared->on_host = true;
	format_text(shared->state, sizeof shared->state, "%s/state", SANDBOX);
	format_text(shared->init, sizeof shared->init, "none");
	phase_reach(PHASE_INIT);
	enter_sandbox();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	target->run(data, size);
	return 0;
}
