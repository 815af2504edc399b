/* The state of one exec's stream, for stream.c and hostframes.c only. */
#ifndef BANGER_RELAY_H
#define BANGER_RELAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire.h"

#define FRAME_BYTES (WIRE_HEADER_BYTES + WIRE_MAX_PAYLOAD)
#define CONTROL_BYTES 1024
#define GRANT_BYTES 65536 /* stdin consumed before the host is told */
#define DRAIN_MS 100
#define DRAIN_BYTES (4 << 20)
#define HANGUP_MS 5000
#define LOOK_MS 500 /* how often pid 1 is looked at for the end of the machine */

struct stream {
	int fd, input, output, errors, signals;
	pid_t pid;
	bool terminal;
	bool host_gone;
	const char *refused; /* why the exchange ends with ERROR */
	bool ended;	     /* the command has; it stays a zombie until the stream ends, so its pid is its own */
	int64_t last_data;   /* when output came last, or could not be looked for */
	bool quiet;	     /* the command has ended, and its pipes were seen empty for DRAIN_MS */
	size_t drained;
	uint8_t in[FRAME_BYTES]; /* from the socket: less than one frame */
	size_t in_length;
	uint8_t out[3 * FRAME_BYTES + CONTROL_BYTES]; /* for the socket */
	size_t out_start, out_length;
	uint8_t pending[WIRE_STDIN_WINDOW]; /* for the command: a ring */
	size_t pending_start, pending_length;
	bool input_ends;  /* the host sends no more */
	bool input_ended; /* and the command knows */
	size_t consumed; /* of stdin, not yet granted back */
	int64_t hangup_deadline;
};

/* hostframes.c: read from the socket and act on every whole frame, or set refused. False: the host has gone. */
bool read_socket(struct stream *stream);

#endif
