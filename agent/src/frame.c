/* Reader and writer of frames and fields. Every length is checked before it is used. */
#include "frame.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

#define SMALL_PIECE 8192 /* so little the kernel finds, if need be by ending a process */
#define MEMORY_WAIT_MS 10
#define MEMORY_WAITS 3000

uint32_t frame_limit(uint8_t type)
{
	return type == FRAME_EXEC || type == FRAME_SESSION_START ? WIRE_MAX_EXEC_PAYLOAD : WIRE_MAX_PAYLOAD;
}

static uint32_t get_u32(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static void set_u32(uint8_t *bytes, uint32_t number)
{
	for (int i = 0; i < 4; i++)
		bytes[i] = (uint8_t)(number >> (8 * i));
}

void frame_header(uint8_t *header, uint8_t type, uint32_t length)
{
	set_u32(header, length);
	header[4] = type;
}

uint32_t frame_length(const uint8_t *header)
{
	return get_u32(header);
}

static enum io wait_for(int fd, short events, int64_t deadline)
{
	for (;;) {
		struct pollfd poller = {.fd = fd, .events = events};
		int ready = poll(&poller, 1, until_ms(deadline));
		if (ready > 0)
			return IO_OK;
		if (ready == 0)
			return IO_TIMEOUT;
		if (errno != EINTR)
			return IO_FAILED;
	}
}

enum io read_exactly(int fd, void *buffer, size_t length, int64_t deadline)
{
	uint8_t *at = buffer;
	while (length) {
		ssize_t got = read(fd, at, length);
		if (got > 0) {
			at += got;
			length -= (size_t)got;
		} else if (got == 0) {
			return IO_EOF;
		} else if (errno == EAGAIN) {
			enum io waited = wait_for(fd, POLLIN, deadline);
			if (waited != IO_OK)
				return waited;
		} else if (errno != EINTR) {
			return IO_FAILED;
		}
	}
	return IO_OK;
}

ssize_t send_some(int fd, const void *bytes, size_t length)
{
	for (int waits = 0;; waits++) {
		ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
		if (sent >= 0 || errno != ENOMEM || waits == MEMORY_WAITS)
			return sent;
		if (length > SMALL_PIECE)
			length = SMALL_PIECE;
		else
			sleep_ms(MEMORY_WAIT_MS);
	}
}

enum io write_exactly(int fd, const void *buffer, size_t length, int64_t deadline)
{
	const uint8_t *at = buffer;
	while (length) {
		ssize_t sent = send_some(fd, at, length);
		if (sent >= 0) {
			at += sent;
			length -= (size_t)sent;
		} else if (errno == EAGAIN) {
			enum io waited = wait_for(fd, POLLOUT, deadline);
			if (waited != IO_OK)
				return waited;
		} else if (errno != EINTR) {
			return IO_FAILED;
		}
	}
	return IO_OK;
}

enum io frame_read(int fd, struct frame *frame, int64_t deadline)
{
	uint8_t header[WIRE_HEADER_BYTES];
	*frame = (struct frame){0};
	enum io ended = read_exactly(fd, header, sizeof header, deadline);
	if (ended != IO_OK)
		return ended;
	frame->type = header[4];
	frame->length = frame_length(header);
	if (frame->length > frame_limit(frame->type))
		return IO_TOO_LONG;
	if (!frame->length)
		return IO_OK;
	frame->payload = malloc(frame->length);
	if (!frame->payload)
		return IO_FAILED;
	ended = read_exactly(fd, frame->payload, frame->length, deadline);
	if (ended != IO_OK)
		frame_free(frame);
	return ended;
}

enum io frame_write(int fd, uint8_t type, const void *payload, size_t length, int64_t deadline)
{
	uint8_t whole[WIRE_HEADER_BYTES + sizeof(((struct builder *)0)->bytes)];
	if (length > sizeof whole - WIRE_HEADER_BYTES)
		return IO_TOO_LONG;
	frame_header(whole, type, (uint32_t)length);
	if (length)
		memcpy(whole + WIRE_HEADER_BYTES, payload, length);
	return write_exactly(fd, whole, WIRE_HEADER_BYTES + length, deadline);
}

void frame_free(struct frame *frame)
{
	free(frame->payload);
	*frame = (struct frame){0};
}

struct fields fields_of(const struct frame *frame)
{
	static const uint8_t nothing[1];
	const uint8_t *start = frame->payload ? frame->payload : nothing;
	return (struct fields){.at = start, .end = start + frame->length};
}

int fields_next(struct fields *fields, struct field *field)
{
	size_t left = (size_t)(fields->end - fields->at);
	if (left == 0)
		return 0;
	if (left < WIRE_FIELD_HEADER_BYTES)
		return -1;
	field->tag = fields->at[0];
	field->length = get_u32(fields->at + 1);
	field->bytes = fields->at + WIRE_FIELD_HEADER_BYTES;
	if (field->length > left - WIRE_FIELD_HEADER_BYTES)
		return -1;
	fields->at = field->bytes + field->length;
	return 1;
}

bool field_number(const struct field *field, uint64_t *number)
{
	if (field->length != 8)
		return false;
	*number = (uint64_t)get_u32(field->bytes) | (uint64_t)get_u32(field->bytes + 4) << 32;
	return true;
}

bool field_text(const struct field *field, char *buffer, size_t size)
{
	if (field->length >= size || memchr(field->bytes, 0, field->length))
		return false;
	memcpy(buffer, field->bytes, field->length);
	buffer[field->length] = 0;
	return true;
}

void put_bytes(struct builder *builder, uint8_t tag, const void *bytes, size_t length)
{
	if (length > sizeof builder->bytes - WIRE_FIELD_HEADER_BYTES ||
	    builder->length > sizeof builder->bytes - WIRE_FIELD_HEADER_BYTES - length)
		return;
	uint8_t *at = builder->bytes + builder->length;
	at[0] = tag;
	set_u32(at + 1, (uint32_t)length);
	memcpy(at + WIRE_FIELD_HEADER_BYTES, bytes, length);
	builder->length += WIRE_FIELD_HEADER_BYTES + length;
}

void put_text(struct builder *builder, uint8_t tag, const char *text)
{
	put_bytes(builder, tag, text, strlen(text));
}

void put_number(struct builder *builder, uint8_t tag, uint64_t number)
{
	uint8_t bytes[8];
	set_u32(bytes, (uint32_t)number);
	set_u32(bytes + 4, (uint32_t)(number >> 32));
	put_bytes(builder, tag, bytes, sizeof bytes);
}
