/* What a host sends while it is attached to a session, follows its logs, or writes to it. */
#include "fuzz.h"

#include "../src/session.h"

static bool fuzz_keeper_send(int keeper, const struct message *message, size_t length, int64_t deadline);

#define keeper_send fuzz_keeper_send
#include "../src/sessionview.c"

static unsigned sends;

static bool fuzz_keeper_send(int keeper, const struct message *sent, size_t length, int64_t deadline)
{
	(void)deadline;
	REQUIRE(keeper >= 0 && length <= SESSION_PIECE && sent->operation < OPERATION_JOINED);
	return ++sends % 61 != 0; /* now and then it has gone */
}

void fuzz_view(const uint8_t *data, size_t size)
{
	static struct view view;
	static int folder;
	struct input input = {data, size};
	uint8_t kind = take_byte(&input);
	if (!folder)
		folder = open(SANDBOX, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	memset(&view, 0, sizeof view);
	sends = 0;
	view.shows = kind % 3;
	view.writer = kind & 4;
	view.keeper = kind & 8 ? -1 : dup(folder);
	view.folder = folder;
	view.logs[0] = view.logs[1] = -1;
	view.credit = (size_t)kind * 1024;
	view.offsets[0] = kind;
	while (input.left && !view.refused && !view.detached) {
		size_t length;
		const uint8_t *piece = take_piece(&input, &length);
		if (!length)
			continue;
		view.fd = bytes_as_file(0, piece, length);
		while (!view.refused && !view.detached && lseek(view.fd, 0, SEEK_CUR) < (off_t)length) {
			read_host(&view);
			REQUIRE(view.refused || view.detached || view.in_length < sizeof view.in);
			REQUIRE(view.pending_length + view.consumed <= sizeof view.pending);
			pass_input(&view);
			REQUIRE(view.pending_start < sizeof view.pending);
			grant(&view);
			REQUIRE(view.out_length + view.out_start <= sizeof view.out);
			view.out_length = 0;
		}
		REQUIRE(view.seen[0] <= view.offsets[0] && view.seen[1] <= view.offsets[1]);
		view.credit += (size_t)kind * 64;
	}
	if (view.keeper >= 0)
		close(view.keeper);
}
