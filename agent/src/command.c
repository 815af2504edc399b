/* Reads what a command is to be, builds its environment, and starts it. */
#include "command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "shared.h"

#define ROOT_MS 60000 /* how long a command waits for a root that is still being mounted */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Another `K=V` that takes the place of an earlier one with the same name. */
static bool set_env(char **env, size_t *count, char *entry)
{
	char *equals = strchr(entry, '=');
	if (!equals || equals == entry)
		return false;
	size_t name = (size_t)(equals - entry) + 1;
	for (size_t i = 0; i < *count; i++) {
		if (!strncmp(env[i], entry, name)) {
			env[i] = entry;
			return true;
		}
	}
	if (*count == WIRE_MAX_ARGUMENTS)
		return false;
	env[(*count)++] = entry;
	env[*count] = NULL;
	return true;
}

static char *copy_field(const struct field *field)
{
	if (memchr(field->bytes, 0, field->length))
		return NULL;
	return strndup((const char *)field->bytes, field->length);
}

bool command_take(struct asked *asked, const struct field *field)
{
	switch (field->tag) {
	case EXEC_ARGUMENT:
		if (asked->arguments == WIRE_MAX_ARGUMENTS)
			return false;
		return (asked->argv[asked->arguments] = copy_field(field)) && ++asked->arguments;
	case EXEC_ENV:
		if (asked->env_count == WIRE_MAX_ARGUMENTS)
			return false;
		return (asked->env[asked->env_count] = copy_field(field)) && *asked->env[asked->env_count] != '=' &&
		       strchr(asked->env[asked->env_count++], '=');
	case EXEC_CWD:
		return field_text(field, asked->cwd, sizeof asked->cwd);
	case EXEC_USER:
		return field_text(field, asked->user, sizeof asked->user);
	case EXEC_FLAGS:
		return field_number(field, &asked->flags);
	case EXEC_ROWS:
		return field_number(field, &asked->rows) && asked->rows <= UINT16_MAX;
	case EXEC_COLS:
		return field_number(field, &asked->cols) && asked->cols <= UINT16_MAX;
	default:
		return true;
	}
}

static char *join(const char *name, const char *value)
{
	size_t size = strlen(name) + strlen(value) + 2;
	char *entry = malloc(size);
	if (entry)
		format_text(entry, size, "%s=%s", name, value);
	return entry;
}

/* Defaults, then what the host's configuration says, then the request. */
static bool build_env(char **env, const struct asked *asked, const struct account *account)
{
	size_t count = 0;
	char *const defaults[] = {
		join("PATH", DEFAULT_PATH),	    join("HOME", account->home),   join("USER", account->name),
		join("LOGNAME", account->name), join("SHELL", account->shell), join("TERM", "xterm"),
	};
	size_t defaults_count = sizeof defaults / sizeof *defaults - !(asked->flags & EXEC_FLAG_TERMINAL);
	for (size_t i = 0; i < defaults_count; i++)
		if (!defaults[i] || !set_env(env, &count, defaults[i]))
			return false;
	for (size_t i = 0; i < config.env_count; i++)
		if (!set_env(env, &count, config.env[i]))
			return false;
	for (size_t i = 0; i < asked->env_count; i++)
		if (!set_env(env, &count, asked->env[i]))
			return false;
	return true;
}

bool command_wait_root(void)
{
	return phase_wait(PHASE_HANDOFF, now_ms() + ROOT_MS);
}

const char *command_start(const struct asked *asked, struct spawned *spawned, char *message, size_t size, int *error)
{
	static char *env[WIRE_MAX_ARGUMENTS + 1];
	struct plan plan = {
		.argv = (char **)(uintptr_t)asked->argv,
		.env = env,
		.cwd = asked->cwd[0] ? asked->cwd : config.workdir[0] ? config.workdir : NULL,
		.terminal = asked->flags & EXEC_FLAG_TERMINAL,
		.wants_stdin = asked->flags & EXEC_FLAG_STDIN,
		.detached = asked->flags & EXEC_FLAG_DETACH,
		.rows = (uint16_t)asked->rows,
		.cols = (uint16_t)asked->cols,
	};
	if (!user_find(&plan.account, asked->user)) {
		format_text(message, size, "no such user or group: %s", asked->user);
		*error = ENOENT;
		return "no_user";
	}
	if (!build_env(env, asked, &plan.account)) {
		format_text(message, size, "malformed environment");
		*error = 0;
		return "bad_request";
	}
	const char *code = spawn(&plan, spawned, error);
	if (code) {
		const char *what = !strcmp(code, "no_cwd") ? (plan.cwd ? plan.cwd : "/") : plan.argv[0];
		format_text(message, size, "%.400s: %s", what, strerror(*error));
	}
	return code;
}
