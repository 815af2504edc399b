/* What the agent says to the host unasked: READY and ENDING, to port 1025. */
#ifndef BANGER_HOSTCALL_H
#define BANGER_HOSTCALL_H

#include <stdbool.h>
#include <stdint.h>

#include "frame.h"

/* HELLO's fields, which READY has too. */
void put_hello(struct builder *builder);

/* Once, so that every connection has what HELLO says without asking the kernel. */
void hello_prepare(void);

/* One frame to the host; true when it was acknowledged by the deadline. */
bool host_call(uint8_t type, const struct builder *builder, int64_t deadline);

/* READY, again and again (20 ms doubling to 2 s) until acknowledged. */
void host_call_ready(void);

/* ENDING, for a second at most, and on the console. message may be NULL. */
void host_call_ending(const char *kind, const char *message);

#endif
