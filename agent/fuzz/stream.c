/* What a host sends while its command runs, at a terminal or not. */
#include "fuzz.h"

#include <string.h>
#include <unistd.h>

#include "../src/frame.h"

#define kill fuzz_kill
#include "../src/hostframes.c"

void fuzz_stream(const uint8_t *data, size_t size)
{
	static struct stream stream;
	struct input input = {data, size};
	uint8_t kind = take_byte(&input);
	memset(&stream, 0, sizeof stream);
	stream.pid = 4000000;
	stream.terminal = kind & 1;
	stream.ended = kind & 2;
	stream.input = kind & 4 ? -1 : 1000;
	stream.output = stream.errors = stream.signals = -1;
	/* In pieces, as a socket gives them. */
	while (input.left && !stream.refused) {
		size_t length;
		const uint8_t *piece = take_piece(&input, &length);
		if (!length)
			continue;
		stream.fd = bytes_as_file(0, piece, length);
		while (!stream.refused && lseek(stream.fd, 0, SEEK_CUR) < (off_t)length) {
			REQUIRE(read_socket(&stream));
			REQUIRE(stream.in_length < sizeof stream.in);
			REQUIRE(stream.pending_length + stream.consumed <= sizeof stream.pending);
			REQUIRE(stream.pending_start < sizeof stream.pending);
		}
		/* As write_input and grant would. */
		size_t written = stream.pending_length < 1000 ? stream.pending_length : 1000;
		stream.pending_start = (stream.pending_start + written) % sizeof stream.pending;
		stream.pending_length -= written;
		stream.consumed = kind & 8 ? 0 : stream.consumed + written;
	}
}
