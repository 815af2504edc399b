/* Frames and fields: all that the agent reads from the host goes through here. */
#ifndef BANGER_FRAME_H
#define BANGER_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire.h"

/* How reading or writing ended. */
enum io { IO_OK, IO_EOF, IO_TIMEOUT, IO_FAILED, IO_TOO_LONG };

struct frame {
	uint8_t type;
	uint32_t length;
	uint8_t *payload; /* malloc'ed; NULL when empty */
};

/* The longest payload that a frame of this type may have. */
uint32_t frame_limit(uint8_t type);

void frame_header(uint8_t *header, uint8_t type, uint32_t length);
uint32_t frame_length(const uint8_t *header);

/* fd must be non-blocking. deadline: now_ms() time by which all of it must be there. */
enum io frame_read(int fd, struct frame *frame, int64_t deadline);
enum io frame_write(int fd, uint8_t type, const void *payload, size_t length, int64_t deadline);
void frame_free(struct frame *frame);
enum io read_exactly(int fd, void *buffer, size_t length, int64_t deadline);
enum io write_exactly(int fd, const void *buffer, size_t length, int64_t deadline);

/* As send, with MSG_NOSIGNAL. vsock wants the memory for a packet in one piece: where none as large is free, small
 * packets are sent, and where there is none at all it is waited for. ENOMEM only when that lasts. */
ssize_t send_some(int fd, const void *bytes, size_t length);

struct fields {
	const uint8_t *at;
	const uint8_t *end;
};

struct field {
	uint8_t tag;
	uint32_t length;
	const uint8_t *bytes;
};

struct fields fields_of(const struct frame *frame);

/* 1: *field is the next one; 0: no more; -1: the payload is malformed. */
int fields_next(struct fields *fields, struct field *field);

/* The field as a number: exactly eight bytes. */
bool field_number(const struct field *field, uint64_t *number);

/* The field as text in buffer, NUL added: shorter than size and without NUL bytes. */
bool field_text(const struct field *field, char *buffer, size_t size);

/* A reply being put together. What does not fit is left out whole. */
struct builder {
	uint8_t bytes[4096];
	size_t length;
};

void put_bytes(struct builder *builder, uint8_t tag, const void *bytes, size_t length);
void put_text(struct builder *builder, uint8_t tag, const char *text);
void put_number(struct builder *builder, uint8_t tag, uint64_t number);

#endif
