/* A copy's request, and the path in it: what there is decides where the copy goes. Nothing is made yet. */
#include "fuzz.h"

#include "../src/copy.c"

void fuzz_copy(const uint8_t *data, size_t size)
{
	static struct copy_request request;
	struct copy_target target = {0};
	struct copy_fault fault = {0};
	uint8_t *payload = malloc(size);
	REQUIRE(payload || !size);
	memset(&request, 0, sizeof request);
	memcpy(payload, data, size);
	const struct frame frame = {.type = FRAME_COPY_IN, .length = (uint32_t)size, .payload = payload};
	if (take_request(&request, &frame) && make_absolute(&request)) {
		REQUIRE(request.path[0] == '/' && !strchr(request.name, '/'));
		target.parent = find_target(&request, &target, &fault);
		REQUIRE((target.parent < 0) == fault.is_set);
		if (target.parent >= 0) {
			REQUIRE(!target.name || (target.name[0] && !strchr(target.name, '/') && strcmp(target.name, "..") != 0));
			close(target.parent);
		}
	}
	free(payload);
}
