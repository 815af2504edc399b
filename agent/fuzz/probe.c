/* What a PROBE asks for, and what comes back on its socket. */
#include "fuzz.h"

#include "../src/probe.c"

void fuzz_probe(const uint8_t *data, size_t size)
{
	struct frame request = {.type = FRAME_PROBE, .length = (uint32_t)size, .payload = (uint8_t *)(uintptr_t)data};
	struct probe probe;
	if (take_probe(&request, &probe)) {
		REQUIRE(probe.length <= PROBE_MOST_DATA && probe.timeout_ms <= PROBE_MOST_MS);
		REQUIRE(memchr(probe.kind, 0, sizeof probe.kind) && (probe.port || probe.kind[0] == 'i'));
		REQUIRE(!probe.length || (probe.data >= data && probe.data + probe.length <= data + size));
	}
	is_echo_reply(data, size, 1);
}
