/* EXEC: reads the request, starts the command and hands over to the stream. */
#include <errno.h>
#include <stdlib.h>

#include "base.h"
#include "command.h"
#include "requests.h"
#include "stream.h"

#define STARTED_MS 10000

static bool take_request(struct asked *asked, const struct frame *request)
{
	struct fields fields = fields_of(request);
	struct field field;
	int more;
	while ((more = fields_next(&fields, &field)) > 0)
		if (!command_take(asked, &field))
			return false;
	return more == 0 && asked->arguments > 0;
}

static void run(int fd, const struct asked *asked)
{
	struct builder started = {0};
	struct spawned spawned;
	char message[512];
	int error = 0;
	const char *code = command_start(asked, &spawned, message, sizeof message, &error);
	if (code) {
		reply_error(fd, code, message, error);
		return;
	}
	put_number(&started, STARTED_PID, (uint64_t)spawned.pid);
	if (asked->flags & EXEC_FLAG_DETACH) /* pid 1 inherits it */
		frame_write(fd, FRAME_STARTED, started.bytes, started.length, now_ms() + STARTED_MS);
	else
		stream_run(fd, &spawned, asked->flags & EXEC_FLAG_TERMINAL, &started);
}

void request_exec(int fd, const struct frame *request)
{
	struct asked *asked = calloc(1, sizeof *asked);
	if (!asked)
		reply_error(fd, "failed", "no memory", ENOMEM);
	else if (!take_request(asked, request))
		reply_error(fd, "bad_request", "malformed EXEC", 0);
	else if (!command_wait_root())
		reply_error(fd, "busy", "the guest has no root yet", 0);
	else
		run(fd, asked);
	free(asked);
}
