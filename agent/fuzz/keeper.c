/* What a connection's process asks of a session's keeper: any messages in any order. */
#include "fuzz.h"

#include <sys/socket.h>

#define kill fuzz_kill
#include "../src/sessionkeeper.c"

static int other_end;

static void set_up(uint8_t kind)
{
	static int pair[2];
	char ignored[64];
	if (!pair[0]) {
		REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
		keeper.folder = open(SANDBOX, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	other_end = pair[1];
	while (recv(other_end, ignored, sizeof ignored, MSG_DONTWAIT) > 0)
		;
	int folder = keeper.folder;
	memset(&keeper, 0, sizeof keeper);
	keeper.folder = folder;
	keeper.listener = keeper.signals = -1;
	keeper.outputs[0].pipe = keeper.outputs[1].pipe = -1;
	keeper.pid = 4000000;
	keeper.terminal = kind & 1;
	keeper.ended = kind & 2;
	keeper.input = kind & 4 ? -1 : open("/dev/null", O_WRONLY | O_CLOEXEC);
	keeper.clients[0].fd = pair[0];
	keeper.clients[1].fd = pair[0];
}

void fuzz_keeper(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	set_up(take_byte(&input));
	while (input.left) {
		uint8_t what = take_byte(&input);
		struct client *client = &keeper.clients[what & 1];
		size_t length;
		message.operation = (what >> 1) & 31;
		message.a = take_byte(&input) | (uint32_t)take_byte(&input) << 8 | (uint32_t)take_byte(&input) << 24;
		message.b = take_byte(&input);
		const uint8_t *piece = take_piece(&input, &length);
		length = length < sizeof message.bytes ? length : sizeof message.bytes;
		memcpy(message.bytes, piece, length);
		if (!take(client, length) && keeper.writer == client)
			keeper.writer = NULL;
		REQUIRE(keeper.pending_length + keeper.owed_credit <= sizeof keeper.pending);
		REQUIRE(keeper.pending_start < sizeof keeper.pending);
		if (what & 128 && keeper.input >= 0 && keeper.pending_length)
			write_input();
		end_input();
		pay_credit();
		look_around();
	}
	close_fd(&keeper.input);
}
