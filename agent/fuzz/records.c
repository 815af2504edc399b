/* A session's folder as somebody who is root in the guest may have left it: any bytes in its files. */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../src/base.h"
#include "../src/session.h"

#define ID "0123456789abcdef0123456789abcdef"

static void check(const struct record *record)
{
	const struct frame frame = {.length = (uint32_t)record->length, .payload = (uint8_t *)(uintptr_t)record->bytes};
	struct fields fields = fields_of(&frame);
	struct field field;
	int more;
	REQUIRE(record->length <= WIRE_MAX_PAYLOAD);
	REQUIRE(fields_next(&fields, &field) == 1 && field.tag == SESSION_ID && field.length == SESSION_ID_LENGTH);
	while ((more = fields_next(&fields, &field)) > 0)
		REQUIRE(field.tag != SESSION_ID);
	REQUIRE(more == 0);
	REQUIRE(record->status.payload >= record->bytes && record->status.payload + record->status.length <= record->bytes + record->length);
	/* Whatever the files say, a session without a keeper has ended. */
	char status[16];
	REQUIRE(session_text(&record->status, SESSION_STATUS, status, sizeof status));
	REQUIRE(!strcmp(status, "exited") || !strcmp(status, "failed"));
}

static bool take_one(int sessions, const char *id, void *context)
{
	(void)sessions;
	REQUIRE(!strcmp(id, ID));
	++*(int *)context;
	return true;
}

void fuzz_records(const uint8_t *data, size_t size)
{
	static const char *const names[] = {"session", "status", "seen", "stdout.log"};
	static struct record record;
	struct input input = {data, size};
	int seen = 0, sessions = sessions_folder(true);
	REQUIRE(sessions >= 0 && (mkdirat(sessions, ID, 0700) == 0 || errno == EEXIST));
	int folder = session_folder(sessions, ID);
	REQUIRE(folder >= 0);
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		size_t length;
		const uint8_t *piece = take_piece(&input, &length);
		if (i == 0 && length == UINT16_MAX) { /* as much as there is */
			piece = input.at;
			length = input.left;
		}
		unlinkat(folder, names[i], 0);
		int file = openat(folder, names[i], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		REQUIRE(file >= 0 && write(file, piece, length) == (ssize_t)length && close(file) == 0);
	}
	REQUIRE(session_record(&record, sessions, ID, 4096, now_ms()));
	check(&record);
	REQUIRE(session_record(&record, sessions, ID, 32768, now_ms()));
	check(&record);
	sessions_each(sessions, take_one, &seen);
	REQUIRE(seen == 1);
	close(folder);
	close(sessions);
}
