/* The requests that are a field or two: FORWARD's port, SHUTDOWN's kind, TIME. None of them acts outside a guest. */
#include "fuzz.h"

#include "../src/forward.c"
#include "../src/requests.c"

void fuzz_small(const uint8_t *data, size_t size)
{
	uint8_t *payload = malloc(size);
	struct wanted wanted;
	REQUIRE(payload || !size);
	memcpy(payload, data, size);
	const struct frame frame = {.length = (uint32_t)size, .payload = payload};
	REQUIRE(!take_wanted(&frame, &wanted) || wanted.port > 0);
	/* The answer goes nowhere: a file is no socket. */
	int nowhere = bytes_as_file(0, NULL, 0);
	request_time(nowhere, &frame);
	request_shutdown(nowhere, &frame);
	free(payload);
}
