/* EXEC: reads the request, builds the command's environment, starts it and hands over to the stream. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base.h"
#include "requests.h"
#include "shared.h"
#include "spawn.h"
#include "stream.h"

#define STARTED_MS 10000
#define ROOT_MS 60000 /* how long a command waits for a root that is still being mounted */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct asked {
	char *argv[WIRE_MAX_ARGUMENTS + 1];
	char *env[WIRE_MAX_ARGUMENTS + 1];
	size_t arguments;
	size_t env_count;
	char cwd[4096];
	char user[256];
	uint64_t flags, rows, cols;
};

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

static bool take_field(struct asked *asked, const struct field *field)
{
	switch (field->tag) {
	case EXEC_ARGUMENT:
		if (asked->arguments == WIRE_MAX_ARGUMENTS)
			return false;
		return (asked->argv[asked->arguments] = copy_field(field)) && ++asked->arguments;
	case EXEC_ENV:
		if (asked->env_count == WIRE_MAX_ARGUMENTS)
			return false;
		return (asked->env[asked->env_count] = copy_field(field)) && strchr(asked->env[asked->env_count++], '=');
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

static bool take_request(struct asked *asked, const struct frame *request)
{
	struct fields fields = fields_of(request);
	struct field field;
	int more;
	while ((more = fields_next(&fields, &field)) > 0)
		if (!take_field(asked, &field))
			return false;
	return more == 0 && asked->arguments > 0;
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

static void run(int fd, const struct asked *asked, struct plan *plan)
{
	struct builder started = {0};
	struct spawned spawned;
	char message[512];
	int error = 0;
	if (!user_find(&plan->account, asked->user)) {
		format_text(message, sizeof message, "no such user or group: %s", asked->user);
		reply_error(fd, "no_user", message, ENOENT);
		return;
	}
	if (!build_env(plan->env, asked, &plan->account)) {
		reply_error(fd, "bad_request", "malformed environment", 0);
		return;
	}
	const char *code = spawn(plan, &spawned, &error);
	if (code) {
		const char *what = !strcmp(code, "no_cwd") ? (plan->cwd ? plan->cwd : "/") : plan->argv[0];
		format_text(message, sizeof message, "%.400s: %s", what, strerror(error));
		reply_error(fd, code, message, error);
		return;
	}
	put_number(&started, STARTED_PID, (uint64_t)spawned.pid);
	if (plan->detached) /* pid 1 inherits it */
		frame_write(fd, FRAME_STARTED, started.bytes, started.length, now_ms() + STARTED_MS);
	else
		stream_run(fd, &spawned, plan->terminal, &started);
}

void request_exec(int fd, const struct frame *request)
{
	struct asked *asked = calloc(1, sizeof *asked);
	char **env = calloc(WIRE_MAX_ARGUMENTS + 1, sizeof *env);
	if (!asked || !env) {
		reply_error(fd, "failed", "no memory", ENOMEM);
	} else if (!take_request(asked, request)) {
		reply_error(fd, "bad_request", "malformed EXEC", 0);
	} else if (!phase_wait(PHASE_HANDOFF, now_ms() + ROOT_MS)) {
		reply_error(fd, "busy", "the guest has no root yet", 0);
	} else {
		struct plan plan = {
			.argv = asked->argv,
			.env = env,
			.cwd = asked->cwd[0] ? asked->cwd : NULL,
			.terminal = asked->flags & EXEC_FLAG_TERMINAL,
			.wants_stdin = asked->flags & EXEC_FLAG_STDIN,
			.detached = asked->flags & EXEC_FLAG_DETACH,
			.rows = (uint16_t)asked->rows,
			.cols = (uint16_t)asked->cols,
		};
		run(fd, asked, &plan);
	}
	/* The strings go with this process, which serves one request. */
	free(env);
	free(asked);
}
