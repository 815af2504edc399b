/* What the host sends while a command runs: stdin, resizes, signals. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "frame.h"
#include "relay.h"
#include "spawn.h"

static bool take_stdin(struct stream *stream, const uint8_t *bytes, size_t length)
{
	if (length == 0) {
		stream->input_ends = true;
		return true;
	}
	/* Bytes of the window that have not been granted back are still taken. */
	if (length > sizeof stream->pending - stream->pending_length - stream->consumed || stream->input_ends)
		return false;
	if (stream->input < 0) {
		stream->consumed += length;
		return true;
	}
	size_t end = (stream->pending_start + stream->pending_length) % sizeof stream->pending;
	size_t first = sizeof stream->pending - end < length ? sizeof stream->pending - end : length;
	memcpy(stream->pending + end, bytes, first);
	memcpy(stream->pending, bytes + first, length - first);
	stream->pending_length += length;
	return true;
}

static bool take_numbers(const uint8_t *payload, size_t length, uint64_t most, uint64_t numbers[3])
{
	struct fields fields = {.at = payload, .end = payload + length};
	struct field field;
	int more;
	while ((more = fields_next(&fields, &field)) > 0)
		if (field.tag < 3 && (!field_number(&field, &numbers[field.tag]) || numbers[field.tag] > most))
			return false;
	return more == 0;
}

static bool take_frame(struct stream *stream, uint8_t type, const uint8_t *payload, size_t length)
{
	uint64_t numbers[3] = {0};
	switch (type) {
	case FRAME_STDIN:
		return take_stdin(stream, payload, length);
	case FRAME_RESIZE:
		if (!take_numbers(payload, length, UINT16_MAX, numbers))
			return false;
		if (stream->terminal && stream->output >= 0)
			set_size(stream->output, (uint16_t)numbers[RESIZE_ROWS], (uint16_t)numbers[RESIZE_COLS]);
		return true;
	case FRAME_SIGNAL:
		if (!take_numbers(payload, length, 64, numbers) || numbers[SIGNAL_NUMBER] == 0)
			return false;
		if (!stream->ended)
			kill(-stream->pid, (int)numbers[SIGNAL_NUMBER]);
		return true;
	default:
		return true; /* of a newer host */
	}
}

bool read_socket(struct stream *stream)
{
	ssize_t got = read(stream->fd, stream->in + stream->in_length, sizeof stream->in - stream->in_length);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (got <= 0)
		return false;
	stream->in_length += (size_t)got;
	size_t start = 0;
	while (stream->in_length - start >= WIRE_HEADER_BYTES) {
		const uint8_t *at = stream->in + start;
		size_t length = frame_length(at);
		if (length > WIRE_MAX_PAYLOAD) {
			stream->refused = "frame too long";
			return true;
		}
		if (stream->in_length - start < WIRE_HEADER_BYTES + length)
			break;
		if (!take_frame(stream, at[4], at + WIRE_HEADER_BYTES, length)) {
			stream->refused = "malformed frame, or more stdin than the window allows";
			return true;
		}
		start += WIRE_HEADER_BYTES + length;
	}
	memmove(stream->in, stream->in + start, stream->in_length - start);
	stream->in_length -= start;
	return true;
}
