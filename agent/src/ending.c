/* The machine's last steps.
 *
 * Every ending, poweroff too, is a reset: Firecracker's x86 machine has no power switch, and a reset is what
 * makes it (and QEMU with -no-reboot) exit. The host knows which it was from ENDING.
 */
#include "ending.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "files.h"
#include "hostcall.h"
#include "mounts.h"
#include "session.h"
#include "shared.h"

#define GRACE_MS 5000 /* for processes to end at TERM; the host's patience is twice that */

static void reset_machine(void) __attribute__((noreturn));

static void reset_machine(void)
{
	sync();
	reboot(RB_AUTOBOOT);
	for (;;)
		sleep_ms(1000);
}

void fatal(const char *message)
{
	say("%s", message);
	host_call_ending("failed", message);
	sleep_ms(200); /* let the console's line out */
	reset_machine();
}

void ending_prepare(void)
{
	static const char *const folders[] = {EXITRD "/oldroot", EXITRD "/dev", EXITRD "/proc", EXITRD "/sys", EXITRD "/run"};
	for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
		make_folders(folders[i]);
	if (copy_self(EXITRD "/shutdown") < 0)
		say("cannot write %s: %s", EXITRD "/shutdown", strerror(errno));
}

/* A session's keeper has its command's end to write down. */
static bool is_keeper(const char *pid)
{
	char path[300], name[32];
	return format_text(path, sizeof path, "/proc/%s/comm", pid) && read_file(path, name, sizeof name) > 0 &&
	       !strcmp(name, KEEPER_NAME "\n");
}

/* Processes other than kernel threads, pid 1 and the agent's own ('@') but keepers. */
static bool others_left(void)
{
	DIR *proc = opendir("/proc");
	bool found = false;
	if (!proc)
		return false;
	for (struct dirent *entry; !found && (entry = readdir(proc));) {
		char path[300], argument[2];
		if (!isdigit((unsigned char)entry->d_name[0]) || !strcmp(entry->d_name, "1"))
			continue;
		if (format_text(path, sizeof path, "/proc/%s/cmdline", entry->d_name) &&
		    read_file(path, argument, sizeof argument) == 1 && (argument[0] != '@' || is_keeper(entry->d_name)))
			found = true;
	}
	closedir(proc);
	return found;
}

static bool has_terminal(const char *pid)
{
	char path[300], stat[512];
	int terminal;
	if (!format_text(path, sizeof path, "/proc/%s/stat", pid) || read_file(path, stat, sizeof stat) <= 0)
		return false;
	const char *behind_name = strrchr(stat, ')');
	return behind_name && sscanf(behind_name + 1, " %*c %*d %*d %*d %d", &terminal) == 1 && terminal != 0;
}

/* HUP is for shells at a terminal, which ignore TERM. Who has none may be about to end well by TERM: to most,
 * HUP would be the sudden end. */
static void hang_up_terminals(void)
{
	DIR *proc = opendir("/proc");
	uint64_t pid;
	for (struct dirent *entry; proc && (entry = readdir(proc));)
		if (isdigit((unsigned char)entry->d_name[0]) && has_terminal(entry->d_name) &&
		    parse_number(entry->d_name, INT32_MAX, &pid) && pid > 1)
			kill((pid_t)pid, SIGHUP);
	if (proc)
		closedir(proc);
}

static void reap(int milliseconds)
{
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	struct timespec timeout = {.tv_nsec = (long)milliseconds * 1000000};
	sigtimedwait(&child, NULL, &timeout);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static void end_processes(void)
{
	int64_t deadline = now_ms() + GRACE_MS;
	/* The agent's server ignores TERM and has no terminal: it stays to pass on what commands still say. */
	kill(-1, SIGTERM);
	hang_up_terminals();
	kill(-1, SIGCONT);
	while (others_left() && now_ms() < deadline)
		reap(50);
	kill(-1, SIGKILL);
	deadline = now_ms() + 2000;
	do
		reap(20);
	while ((waitpid(-1, NULL, WNOHANG) >= 0 || errno != ECHILD) && now_ms() < deadline);
}

void ending_run(const char *kind)
{
	if (strcmp(kind, "reboot") != 0 && strcmp(kind, "halt") != 0)
		kind = "poweroff";
	/* systemd brings these along; be sure. */
	if (access("/proc/self", F_OK) < 0)
		mount("proc", "/proc", "proc", 0, NULL);
	if (access("/dev/console", F_OK) < 0)
		mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	for (int fd = 0; fd < 3; fd++)
		close(fd); /* a console of the former root would keep that busy */
	kill(-1, SIGKILL);
	int64_t deadline = now_ms() + 2000;
	while ((waitpid(-1, NULL, WNOHANG) >= 0 || errno != ECHILD) && now_ms() < deadline)
		sleep_ms(2);
	sync();
	unmount_below("/oldroot");
	host_call_ending(kind, NULL);
	reset_machine();
}

void ending_as_init(const char *kind)
{
	phase_reach(PHASE_SHUTDOWN);
	end_processes();
	sync();
	if (mount(EXITRD, EXITRD, NULL, MS_BIND, NULL) == 0 && mount(NULL, EXITRD, NULL, MS_PRIVATE, NULL) == 0 &&
	    chdir(EXITRD) == 0 && syscall(SYS_pivot_root, ".", "oldroot") == 0 && chroot(".") == 0)
		ending_run(kind);
	/* No way out of the root: then at least nothing is written to it any more. */
	say("cannot leave the root: %s", strerror(errno));
	unmount_below("/root");
	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	host_call_ending(kind, NULL);
	reset_machine();
}
