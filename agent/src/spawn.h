/* Starting a command. */
#ifndef BANGER_SPAWN_H
#define BANGER_SPAWN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "users.h"

struct plan {
	char **argv;
	char **env;
	const char *cwd; /* NULL: the user's home, or / where that is not there */
	struct account account;
	bool terminal;
	bool wants_stdin;
	bool detached; /* neither: /dev/null for all three, and nobody waits */
	uint16_t rows, cols;
};

/* The command and the agent's ends, non-blocking; -1 where there is none. With a terminal, stdin and stdout
 * are two descriptors of its master. The command leads a session and process group of its own. */
struct spawned {
	pid_t pid;
	int input;
	int output;
	int errors;
};

/* NULL, or the wire's error code; *error is errno then. */
const char *spawn(const struct plan *plan, struct spawned *spawned, int *error);

/* Window size of the terminal behind fd. */
void set_size(int fd, uint16_t rows, uint16_t cols);

#endif
