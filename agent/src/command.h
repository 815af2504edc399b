/* A command as the host asks for it, by EXEC or as a session. */
#ifndef BANGER_COMMAND_H
#define BANGER_COMMAND_H

#include "frame.h"
#include "spawn.h"

struct asked {
	char *argv[WIRE_MAX_ARGUMENTS + 1];
	char *env[WIRE_MAX_ARGUMENTS + 1];
	size_t arguments;
	size_t env_count;
	char cwd[4096];
	char user[256];
	uint64_t flags, rows, cols; /* EXEC_FLAG_… */
};

/* One field in EXEC's numbering; others are skipped. False: malformed, or more than is allowed. The strings
 * are allocated and never freed: a process serves one request. */
bool command_take(struct asked *asked, const struct field *field);

/* Wait until there is a root to run commands in. False: there is none after a minute. */
bool command_wait_root(void);

/* Start it. NULL, or the wire's error code; then *error is errno or 0, and message says what is wrong. */
const char *command_start(const struct asked *asked, struct spawned *spawned, char *message, size_t size, int *error);

#endif
