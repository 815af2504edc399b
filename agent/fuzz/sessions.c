/* The requests about sessions, and a START's way into the session's file and back. */
#include "fuzz.h"

#include <sys/stat.h>

#include "../src/sessions.c"

static bool make_file(const struct wish *wish, const struct frame *request)
{
	struct frame session;
	char name[WIRE_MAX_SESSION_NAME + 1];
	int folder = open(SANDBOX, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	REQUIRE(folder >= 0 && write_asked(folder, wish, request));
	REQUIRE(session_read(folder, "session", &session) && session_text(&session, SESSION_NAME, name, sizeof name));
	REQUIRE(!strcmp(name, wish->name));
	frame_free(&session);
	return close(folder) == 0;
}

void fuzz_sessions(const uint8_t *data, size_t size)
{
	struct ask ask = {0};
	struct wish *wish = calloc(1, sizeof *wish);
	uint8_t *payload = malloc(size);
	REQUIRE(wish && payload);
	memcpy(payload, data, size);
	const struct frame frame = {.type = FRAME_SESSION_START, .length = (uint32_t)size, .payload = payload};
	if (take_ask(&ask, &frame)) {
		REQUIRE(!ask.id[0] || session_id_valid(ask.id));
		REQUIRE(ask.rows <= UINT16_MAX && ask.cols <= UINT16_MAX && ask.number <= 64 && ask.grace <= MAX_GRACE_MS);
	}
	if (take_wish(wish, &frame)) {
		REQUIRE(session_id_valid(wish->id) && name_valid(wish->name) && wish->tags <= WIRE_MAX_SESSION_TAGS);
		REQUIRE(wish->asked.arguments > 0 && !(wish->asked.flags & ~3ULL));
		REQUIRE(make_file(wish, &frame));
	}
	forget_allocations();
	free(payload);
	free(wish);
}
