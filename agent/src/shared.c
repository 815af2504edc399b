/* Shared phase with a futex for those who wait, and fork with a shared root. */
#include "shared.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

struct shared *shared;
struct config config;

void shared_create(void)
{
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED) {
		say("no memory");
		abort();
	}
}

enum phase phase_now(void)
{
	return (enum phase)atomic_load(&shared->phase);
}

void phase_reach(enum phase phase)
{
	uint32_t seen = atomic_load(&shared->phase);
	while (seen < (uint32_t)phase && !atomic_compare_exchange_weak(&shared->phase, &seen, (uint32_t)phase))
		;
	syscall(SYS_futex, &shared->phase, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

const char *phase_name(enum phase phase)
{
	static const char *const names[] = {"early", "handoff", "init", "shutdown"};
	return names[phase];
}

bool phase_wait(enum phase phase, int64_t deadline)
{
	for (;;) {
		uint32_t seen = atomic_load(&shared->phase);
		if (seen >= (uint32_t)phase)
			return true;
		int left = until_ms(deadline);
		if (left == 0)
			return false;
		struct timespec timeout = {.tv_sec = left / 1000, .tv_nsec = (long)(left % 1000) * 1000000};
		syscall(SYS_futex, &shared->phase, FUTEX_WAIT, seen, &timeout, NULL, 0);
	}
}

bool systemd_is_ending(void)
{
	char name[32];
	return read_file("/proc/1/comm", name, sizeof name) > 0 && !strncmp(name, "systemd-shutdow", 15);
}

pid_t agent_fork(void)
{
	if (phase_now() >= PHASE_HANDOFF)
		return fork();
	/* No stack and no thread pointers given: a fork in all but the shared root. The arguments' order
	 * differs between machines, but all that differ are zero. */
	return (pid_t)syscall(SYS_clone, (unsigned long)(CLONE_FS | SIGCHLD), 0UL, 0UL, 0UL, 0UL);
}
