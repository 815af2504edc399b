/* Frames and fields: a stream of any bytes, read as the server reads a connection's. */
#include "fuzz.h"

#include <string.h>

#include "../src/base.h"
#include "../src/frame.h"

static void read_fields(const struct frame *frame)
{
	struct fields fields = fields_of(frame);
	struct field field;
	char text[64];
	uint64_t number;
	int more;
	size_t seen = 0;
	while ((more = fields_next(&fields, &field)) > 0) {
		seen += WIRE_FIELD_HEADER_BYTES + field.length;
		REQUIRE(seen <= frame->length);
		REQUIRE(field_number(&field, &number) == (field.length == 8));
		if (field_text(&field, text, sizeof text))
			REQUIRE(strlen(text) == field.length);
	}
	REQUIRE(more < 0 || seen == frame->length);
}

/* What the builder makes, the reader reads. */
static void build(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct builder builder = {0};
	struct field field;
	while (input.left) {
		size_t length;
		uint8_t tag = take_byte(&input);
		const uint8_t *piece = take_piece(&input, &length);
		size_t before = builder.length;
		put_bytes(&builder, tag, piece, length);
		if (builder.length == before)
			continue;
		struct fields fields = {builder.bytes + before, builder.bytes + builder.length};
		REQUIRE(fields_next(&fields, &field) == 1 && field.tag == tag && field.length == length);
		REQUIRE(!memcmp(field.bytes, piece, length) && fields_next(&fields, &field) == 0);
	}
}

void fuzz_frames(const uint8_t *data, size_t size)
{
	int fd = bytes_as_file(0, data, size);
	struct frame frame;
	enum io ended;
	while ((ended = frame_read(fd, &frame, 0)) == IO_OK) {
		REQUIRE(frame.length <= frame_limit(frame.type));
		read_fields(&frame);
		frame_free(&frame);
	}
	REQUIRE(ended == IO_EOF || ended == IO_TOO_LONG);
	REQUIRE(!frame.payload);
	build(data, size);
}
