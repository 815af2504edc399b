/* EXEC's payload: arguments, variables and the rest, and the environment that is made of them. */
#include "fuzz.h"

#include <string.h>

static void *remembered[2 * 4096 + 64];
static size_t remembered_count;

static void *remember(void *made)
{
	REQUIRE(made && remembered_count < sizeof remembered / sizeof *remembered);
	return remembered[remembered_count++] = made;
}

void forget_allocations(void)
{
	while (remembered_count)
		free(remembered[--remembered_count]);
}

static char *remembering_strndup(const char *text, size_t length)
{
	return remember(strndup(text, length));
}

static void *remembering_malloc(size_t size)
{
	return remember(malloc(size));
}

#define malloc remembering_malloc
#undef strndup
#define strndup remembering_strndup
#include "../src/command.c"
#undef malloc
#undef strndup
#include "../src/exec.c"

static void check_env(char **env, const struct asked *asked)
{
	size_t count = 0;
	for (; env[count]; count++) {
		size_t name = strcspn(env[count], "=");
		REQUIRE(name > 0 && env[count][name] == '=');
		for (size_t i = 0; count < 64 && i < count; i++)
			REQUIRE(strncmp(env[i], env[count], name + 1) != 0);
	}
	REQUIRE(count <= WIRE_MAX_ARGUMENTS && count >= (asked->env_count ? 1 : 0));
}

void fuzz_exec(const uint8_t *data, size_t size)
{
	static char *env[WIRE_MAX_ARGUMENTS + 1];
	static const struct account account = {.name = "root", .home = "/root", .shell = "/bin/sh"};
	struct asked *asked = calloc(1, sizeof *asked);
	uint8_t *payload = malloc(size); /* exactly as long: a byte too far is seen */
	REQUIRE(asked && payload);
	memcpy(payload, data, size);
	const struct frame frame = {.type = FRAME_EXEC, .length = (uint32_t)size, .payload = payload};
	if (take_request(asked, &frame)) {
		REQUIRE(asked->arguments > 0 && asked->arguments <= WIRE_MAX_ARGUMENTS && !asked->argv[asked->arguments]);
		REQUIRE(asked->env_count <= WIRE_MAX_ARGUMENTS && asked->rows <= UINT16_MAX && asked->cols <= UINT16_MAX);
		env[0] = NULL;
		if (build_env(env, asked, &account))
			check_env(env, asked);
	}
	forget_allocations();
	free(payload);
	free(asked);
}
