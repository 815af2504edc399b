/* The agent's server: one listening socket, one child per connection. */
#ifndef BANGER_SERVER_H
#define BANGER_SERVER_H

/* As a child of pid 1. handoff: end of file there means that pid 1 is the image's init now. */
void server_run(char **argv, int handoff) __attribute__((noreturn));

/* As an ordinary process on a Unix socket, for tests: greets like a monitor (CONNECT, OK), and does nothing
 * to its machine. ready: path of a Unix socket for READY, or NULL. */
void server_run_unix(const char *path, const char *ready) __attribute__((noreturn));

#endif
