/* One page of memory that pid 1, the server and its children share, and the agent's own fork. */
#ifndef BANGER_SHARED_H
#define BANGER_SHARED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config.h"

/* How far the guest is. Only ever grows. */
enum phase {
	PHASE_EARLY,    /* in the initramfs: no root yet, commands wait */
	PHASE_HANDOFF,  /* the root is there, the image's init about to start */
	PHASE_INIT,     /* an init runs */
	PHASE_SHUTDOWN, /* asked to end */
};

struct shared {
	_Atomic uint32_t phase;
	char init[256];               /* set before PHASE_HANDOFF: path of the image's init, or "agent" */
	bool agent_is_init;           /* likewise */
	bool on_host;                 /* --serve-unix: an ordinary process that must leave its machine alone */
	char ready_path[108];         /* on_host: the Unix socket that stands for the host's port 1025; may be empty */
	char state[128];              /* on_host: the folder that stands for /var/lib/banger */
};

extern struct shared *shared;
extern struct config config;

void shared_create(void);
void phase_reach(enum phase phase);
enum phase phase_now(void);
const char *phase_name(enum phase phase);

/* True once the phase is reached; false at the deadline. */
bool phase_wait(enum phase phase, int64_t deadline);

/* Systemd is pid 1 and past its services: what still runs is about to be ended. */
bool systemd_is_ending(void);

/* Fork. Until the root is in place parent and child share root and working directory (CLONE_FS), so that
 * pid 1's change of root is everybody's; whoever goes his own way calls unshare(CLONE_FS). */
pid_t agent_fork(void);

#endif
