/* The framed stream between the host and a running command. */
#ifndef BANGER_STREAM_H
#define BANGER_STREAM_H

#include "frame.h"
#include "spawn.h"

/* Relay until the command has ended and EXIT is sent, or the host has gone and the command is ended.
 * started: the payload of the STARTED frame, sent first. */
void stream_run(int fd, const struct spawned *spawned, bool terminal, const struct builder *started);

#endif
