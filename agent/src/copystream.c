/* The frames of a copy. Coming bytes are used where they lie, going ones are read into their frame. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"
#include "copy.h"
#include "shared.h"

#define MAX_NOTES 20
#define LOOK_MS 500

void copy_fail(struct copy_fault *fault, const char *code, const char *what, const char *path, int error)
{
	if (fault->is_set)
		return;
	fault->is_set = true;
	fault->error = error;
	format_text(fault->code, sizeof fault->code, "%s", code);
	/* A long path loses its beginning: its end says more. */
	size_t length = strlen(path);
	const char *tail = length > 800 ? path + length - 800 : path;
	format_text(fault->message, sizeof fault->message, "%s%s%s%s%s%s", what, *what && *path ? " " : "",
		    tail == path ? "" : "…", tail, error ? ": " : "", error ? strerror(error) : "");
}

/* Looked at now and then: a machine that ends takes its disks away, and nothing may hold them. */
static bool machine_ends(struct copy_stream *stream)
{
	int64_t now = now_ms();
	if (shared->on_host || now - stream->looked < LOOK_MS)
		return false;
	stream->looked = now;
	if (phase_now() != PHASE_SHUTDOWN && (shared->agent_is_init || !systemd_is_ending()))
		return false;
	copy_fail(stream->fault, "failed", "the guest shuts down", "", 0);
	return true;
}

static void host_gone(struct copy_stream *stream)
{
	stream->fault->host_gone = true;
	copy_fail(stream->fault, "failed", "the host has gone", "", 0);
}

/* Any number of bytes, at least one; without a limit in time: the host may have a slow reader or writer. */
static ssize_t receive(struct copy_stream *stream, uint8_t *into, size_t room)
{
	while (!machine_ends(stream)) {
		ssize_t got = read(stream->fd, into, room);
		if (got > 0)
			return got;
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN) {
			struct pollfd poller = {.fd = stream->fd, .events = POLLIN};
			poll(&poller, 1, LOOK_MS);
			continue;
		}
		host_gone(stream);
		return -1;
	}
	return -1;
}

/* The bytes that came, until there is one at least of a DATA frame's payload. */
static ssize_t peek(struct tar_source *source, const uint8_t **bytes)
{
	struct copy_stream *stream = (struct copy_stream *)source;
	while (!stream->fault->is_set) {
		if (stream->left && stream->length) {
			*bytes = stream->bytes + stream->start;
			return (ssize_t)(stream->length < stream->left ? stream->length : stream->left);
		}
		if (stream->ended)
			return 0;
		if (!stream->left && stream->length >= WIRE_HEADER_BYTES) {
			const uint8_t *header = stream->bytes + stream->start;
			uint32_t length = frame_length(header);
			bool data = header[4] == FRAME_COPY_DATA, end = header[4] == FRAME_COPY_END;
			if ((!data && !end) || length > WIRE_MAX_COPY_PAYLOAD || (end && length)) {
				copy_fail(stream->fault, "bad_request", "malformed frame in a copy", "", 0);
				return -1;
			}
			stream->left = length;
			stream->ended = end;
			stream->start += WIRE_HEADER_BYTES;
			stream->length -= WIRE_HEADER_BYTES;
			continue;
		}
		if (!stream->length) {
			stream->start = 0;
		} else if (stream->start + WIRE_HEADER_BYTES > sizeof stream->bytes) {
			memmove(stream->bytes, stream->bytes + stream->start, stream->length);
			stream->start = 0;
		}
		size_t end = stream->start + stream->length;
		ssize_t got = receive(stream, stream->bytes + end, sizeof stream->bytes - end);
		if (got < 0)
			return -1;
		stream->length += (size_t)got;
	}
	return -1;
}

static void skip(struct tar_source *source, size_t length)
{
	struct copy_stream *stream = (struct copy_stream *)source;
	stream->start += length;
	stream->length -= length;
	stream->left -= length;
}

void copy_receive(struct copy_stream *stream, int fd, struct copy_fault *fault)
{
	*stream = (struct copy_stream){.source = {.peek = peek, .skip = skip}, .fd = fd, .fault = fault};
}

bool copy_finish_receiving(struct copy_stream *stream)
{
	const uint8_t *bytes;
	ssize_t got;
	while ((got = peek(&stream->source, &bytes)) > 0)
		skip(&stream->source, (size_t)got);
	return got == 0;
}

void copy_send(struct copy_stream *stream, int fd, struct copy_fault *fault)
{
	*stream = (struct copy_stream){.fd = fd, .fault = fault};
}

static bool send_all(struct copy_stream *stream, const uint8_t *bytes, size_t length)
{
	while (length) {
		ssize_t sent = send_some(stream->fd, bytes, length);
		if (sent >= 0) {
			bytes += sent;
			length -= (size_t)sent;
		} else if (errno == EAGAIN) {
			struct pollfd poller = {.fd = stream->fd, .events = POLLOUT};
			poll(&poller, 1, LOOK_MS);
			if (machine_ends(stream)) {
				stream->fault->host_gone = true; /* in the middle of a frame nothing can be said */
				return false;
			}
		} else if (errno != EINTR) {
			host_gone(stream);
			return false;
		}
	}
	return true;
}

bool copy_flush(struct copy_stream *stream)
{
	size_t length = stream->length;
	if (!length || stream->fault->host_gone || machine_ends(stream))
		return !stream->fault->is_set;
	frame_header(stream->bytes, FRAME_COPY_DATA, (uint32_t)length);
	stream->length = 0;
	return send_all(stream, stream->bytes, WIRE_HEADER_BYTES + length);
}

uint8_t *copy_room(struct copy_stream *stream, size_t *room)
{
	if (stream->length == WIRE_MAX_COPY_PAYLOAD && !copy_flush(stream))
		return NULL;
	*room = WIRE_MAX_COPY_PAYLOAD - stream->length;
	return stream->fault->is_set ? NULL : stream->bytes + WIRE_HEADER_BYTES + stream->length;
}

void copy_wrote(struct copy_stream *stream, size_t length)
{
	stream->length += length;
}

bool copy_put(struct copy_stream *stream, const void *bytes, size_t length)
{
	const uint8_t *at = bytes;
	while (length) {
		size_t room;
		uint8_t *into = copy_room(stream, &room);
		if (!into)
			return false;
		if (room > length)
			room = length;
		memcpy(into, at, room);
		copy_wrote(stream, room);
		at += room;
		length -= room;
	}
	return true;
}

bool copy_note(struct copy_stream *stream, const char *what, const char *path)
{
	struct builder builder = {0};
	struct copy_fault note = {0};
	uint8_t header[WIRE_HEADER_BYTES];
	if (stream->notes++ >= MAX_NOTES)
		return true;
	copy_fail(&note, "", what, path, 0);
	put_text(&builder, COPY_NOTE_MESSAGE, note.message);
	frame_header(header, FRAME_COPY_NOTE, (uint32_t)builder.length);
	return copy_flush(stream) && send_all(stream, header, sizeof header) &&
	       send_all(stream, builder.bytes, builder.length);
}
