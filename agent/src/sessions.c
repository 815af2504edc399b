/* The requests about sessions. Each is served by its connection's process; what lasts is the keeper's. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "command.h"
#include "hostcall.h"
#include "requests.h"
#include "session.h"

#define REPLY_MS 10000
#define LOCK_MS 10000
#define COMMAND_BYTES 32768 /* of arguments and variables in a record */
#define LISTED_BYTES 4096   /* the same where all are listed */
#define ANSWER_MS 2000
#define LAUNCH_MS 30000
#define MAX_GRACE_MS 86400000
#define DEFAULT_GRACE_MS 10000
#define END_MS 10000 /* from KILL to the status */

struct ask {
	char id[SESSION_ID_LENGTH + 1];
	uint64_t flags, rows, cols, number, grace, tail;
	bool has_tail;
};

static bool take_ask(struct ask *ask, const struct frame *request)
{
	struct fields fields = fields_of(request);
	struct field field;
	int more;
	bool fine = true;
	ask->grace = DEFAULT_GRACE_MS;
	while (fine && (more = fields_next(&fields, &field)) != 0) {
		if (more < 0)
			return false;
		switch (field.tag) {
		case SESSION_ID:
			fine = field_text(&field, ask->id, sizeof ask->id) && session_id_valid(ask->id);
			break;
		case SESSION_FLAGS:
			fine = field_number(&field, &ask->flags);
			break;
		case SESSION_ROWS:
			fine = field_number(&field, &ask->rows) && ask->rows <= UINT16_MAX;
			break;
		case SESSION_COLS:
			fine = field_number(&field, &ask->cols) && ask->cols <= UINT16_MAX;
			break;
		case SESSION_NUMBER:
			fine = field_number(&field, &ask->number) && ask->number <= 64;
			break;
		case SESSION_GRACE_MS:
			fine = field_number(&field, &ask->grace) && ask->grace <= MAX_GRACE_MS;
			break;
		case SESSION_TAIL_LINES:
			ask->has_tail = true;
			fine = field_number(&field, &ask->tail);
			break;
		}
	}
	return fine;
}

/* The folder of all sessions, or -1 with the host told why. */
static int open_sessions(int fd, bool create)
{
	if (!command_wait_root()) {
		reply_error(fd, "busy", "the guest has no root yet", 0);
		return -1;
	}
	int sessions = sessions_folder(create);
	if (sessions < 0 && (create || errno != ENOENT))
		reply_error(fd, "failed", "cannot open the sessions' folder", errno);
	else if (sessions < 0)
		reply_error(fd, "not_found", "no such session", 0);
	return sessions;
}

/* The same for a request about one session. */
static int open_asked(int fd, const struct frame *request, struct ask *ask)
{
	if (!take_ask(ask, request) || !ask->id[0]) {
		reply_error(fd, "bad_request", "malformed request about a session", 0);
		return -1;
	}
	return open_sessions(fd, false);
}

static bool send_long(int fd, uint8_t type, const uint8_t *payload, size_t length)
{
	uint8_t header[WIRE_HEADER_BYTES];
	int64_t deadline = now_ms() + REPLY_MS;
	frame_header(header, type, (uint32_t)length);
	return write_exactly(fd, header, sizeof header, deadline) == IO_OK && write_exactly(fd, payload, length, deadline) == IO_OK;
}

static void reply_record(int fd, int sessions, const char *id, int64_t patience)
{
	static struct record record;
	if (session_record(&record, sessions, id, COMMAND_BYTES, now_ms() + patience))
		send_long(fd, FRAME_OK, record.bytes, record.length);
	else
		reply_error(fd, "not_found", "no such session", 0);
}

/* START */

struct wish {
	char id[SESSION_ID_LENGTH + 1];
	char name[WIRE_MAX_SESSION_NAME + 1];
	unsigned tags;
	struct asked asked;
};

static bool name_valid(const char *name)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
	return *name && strspn(name, allowed) == strlen(name);
}

static bool take_tag(struct wish *wish, const struct field *field)
{
	char tag[WIRE_MAX_SESSION_TAG + 1];
	return field->length > 0 && field_text(field, tag, sizeof tag) && ++wish->tags <= WIRE_MAX_SESSION_TAGS;
}

static bool take_wish(struct wish *wish, const struct frame *request)
{
	/* What a command has in EXEC's numbering. Its flags are the same. */
	static const uint8_t same[] = {
		[SESSION_FLAGS] = EXEC_FLAGS, [SESSION_ARGUMENT] = EXEC_ARGUMENT, [SESSION_ENV] = EXEC_ENV, [SESSION_CWD] = EXEC_CWD,
		[SESSION_USER] = EXEC_USER,   [SESSION_ROWS] = EXEC_ROWS,	  [SESSION_COLS] = EXEC_COLS,
	};
	struct fields fields = fields_of(request);
	struct field field;
	int more;
	bool fine = true;
	while (fine && (more = fields_next(&fields, &field)) != 0) {
		if (more < 0)
			return false;
		if (field.tag == SESSION_ID)
			fine = field_text(&field, wish->id, sizeof wish->id) && session_id_valid(wish->id);
		else if (field.tag == SESSION_NAME)
			fine = field_text(&field, wish->name, sizeof wish->name) && name_valid(wish->name);
		else if (field.tag == SESSION_TAG)
			fine = take_tag(wish, &field);
		else if (field.tag < sizeof same && same[field.tag])
			fine = command_take(&wish->asked, &(struct field){.tag = same[field.tag], .length = field.length, .bytes = field.bytes});
	}
	wish->asked.flags &= SESSION_FLAG_TERMINAL | SESSION_FLAG_STDIN;
	return fine && wish->id[0] && wish->name[0] && wish->asked.arguments > 0;
}

/* One START at a time decides. Waited for, as each takes milliseconds. */
static bool lock(int sessions)
{
	for (int64_t deadline = now_ms() + LOCK_MS; flock(sessions, LOCK_EX | LOCK_NB) < 0; sleep_ms(5))
		if (errno != EWOULDBLOCK || now_ms() >= deadline)
			return false;
	return true;
}

struct census {
	const struct wish *wish;
	unsigned kept, running;
	bool name_taken;
};

static bool count(int sessions, const char *id, void *context)
{
	struct census *census = context;
	struct frame session = {0};
	char name[WIRE_MAX_SESSION_NAME + 1];
	int folder = session_folder(sessions, id);
	census->kept++;
	if (folder >= 0) {
		if (session_read(folder, "session", &session) && session_text(&session, SESSION_NAME, name, sizeof name) &&
		    !strcmp(name, census->wish->name))
			census->name_taken = true;
		frame_free(&session);
		close(folder);
	}
	int keeper = keeper_connect(sessions, id);
	census->running += keeper != -1;
	if (keeper >= 0)
		close(keeper);
	return true;
}

/* What is kept of the request: its fields, the name first, and when and in which life of the VM it was made. */
static bool write_asked(int folder, const struct wish *wish, const struct frame *request)
{
	struct builder hello = {0}, own = {0};
	struct frame fields_of_hello = {0};
	char boot_id[64] = "";
	struct fields fields = fields_of(request);
	struct field field;
	uint8_t *bytes = malloc(request->length + sizeof own.bytes);
	size_t length = 0;
	if (!bytes)
		return false;
	put_hello(&hello);
	fields_of_hello = (struct frame){.payload = hello.bytes, .length = (uint32_t)hello.length};
	session_text(&fields_of_hello, HELLO_BOOT_ID, boot_id, sizeof boot_id);
	put_text(&own, SESSION_NAME, wish->name);
	put_number(&own, SESSION_CREATED, (uint64_t)time(NULL));
	put_text(&own, SESSION_BOOT_ID, boot_id);
	memcpy(bytes, own.bytes, own.length);
	length = own.length;
	while (fields_next(&fields, &field) > 0) {
		if (field.tag < SESSION_FLAGS || field.tag > SESSION_TAG)
			continue;
		memcpy(bytes + length, field.bytes - WIRE_FIELD_HEADER_BYTES, WIRE_FIELD_HEADER_BYTES + field.length);
		length += WIRE_FIELD_HEADER_BYTES + field.length;
	}
	bool done = session_write(folder, "session", bytes, length);
	int why = errno;
	free(bytes);
	errno = why;
	return done;
}

static void discard_folder(int sessions, const char *id);

#define FRESH ".starting" /* its folder's name until somebody listens in it; one START at a time makes one */

/* The folder with what was asked in it, and its keeper's socket. -1 with errno, and nothing left. */
static int make_folder(int sessions, const struct wish *wish, const struct frame *request, int *listener)
{
	struct builder status = {0};
	put_text(&status, SESSION_STATUS, "starting");
	put_number(&status, SESSION_UPDATED, (uint64_t)time(NULL));
	discard_folder(sessions, FRESH); /* of one that was killed in the middle of this */
	*listener = -1;
	if (faccessat(sessions, wish->id, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
		errno = EEXIST;
		return -1;
	}
	if (mkdirat(sessions, FRESH, 0700) < 0)
		return -1;
	int folder = session_folder(sessions, FRESH);
	if (folder >= 0 && write_asked(folder, wish, request) && session_write(folder, "status", status.bytes, status.length) &&
	    (*listener = keeper_listen(sessions, FRESH)) >= 0 && renameat(sessions, FRESH, sessions, wish->id) == 0)
		return folder;
	int why = errno;
	if (folder >= 0)
		close(folder);
	if (*listener >= 0)
		close(*listener);
	discard_folder(sessions, FRESH);
	errno = why;
	return -1;
}

/* NULL, or the wire's code. */
static const char *start(int sessions, const struct wish *wish, const struct frame *request, const char **message)
{
	struct census census = {.wish = wish};
	sessions_each(sessions, count, &census);
	*message = census.name_taken ? "there is a session of that name" : "there is a session with that id";
	if (census.name_taken)
		return "exists";
	if (census.kept >= WIRE_MAX_SESSIONS || census.running >= WIRE_MAX_RUNNING_SESSIONS) {
		*message = census.kept >= WIRE_MAX_SESSIONS ? "too many sessions are kept: remove some" : "too many sessions are running";
		return "busy";
	}
	int listener, folder = make_folder(sessions, wish, request, &listener);
	if (folder < 0 && errno == EEXIST)
		return "exists";
	if (folder < 0) {
		*message = errno == ENOSPC ? "the guest's disk is full" : "cannot make the session's folder";
		return "failed";
	}
	pid_t keeper = fork();
	if (keeper == 0)
		keeper_run(folder, listener, &wish->asked);
	int why = errno;
	close(listener);
	close(folder);
	errno = why;
	if (keeper > 0)
		return NULL;
	*message = "cannot start the session's keeper";
	discard_folder(sessions, wish->id);
	return "failed";
}

void request_session_start(int fd, const struct frame *request)
{
	struct wish *wish = calloc(1, sizeof *wish);
	const char *message = "";
	if (!wish || !take_wish(wish, request)) {
		reply_error(fd, wish ? "bad_request" : "failed", wish ? "malformed SESSION_START" : "no memory", 0);
		free(wish);
		return;
	}
	int sessions = open_sessions(fd, true);
	if (sessions >= 0 && !lock(sessions)) {
		reply_error(fd, "busy", "other sessions are being started", 0);
	} else if (sessions >= 0) {
		errno = 0;
		const char *code = start(sessions, wish, request, &message);
		int why = errno;
		flock(sessions, LOCK_UN);
		if (code)
			reply_error(fd, code, message, strcmp(code, "failed") ? 0 : why);
		else
			reply_record(fd, sessions, wish->id, LAUNCH_MS);
	}
	if (sessions >= 0)
		close(sessions);
	free(wish);
}

/* LIST */

static bool list_one(int sessions, const char *id, void *context)
{
	static struct record record;
	int fd = *(int *)context;
	return !session_record(&record, sessions, id, LISTED_BYTES, now_ms() + ANSWER_MS) || send_long(fd, FRAME_SESSION, record.bytes, record.length);
}

void request_session_list(int fd, const struct frame *request)
{
	static struct record record;
	struct ask ask = {0};
	struct builder empty = {0};
	if (!take_ask(&ask, request)) {
		reply_error(fd, "bad_request", "malformed SESSION_LIST", 0);
		return;
	}
	if (!command_wait_root()) {
		reply_error(fd, "busy", "the guest has no root yet", 0);
		return;
	}
	int sessions = sessions_folder(false);
	if (ask.id[0]) {
		if (sessions < 0 || !session_record(&record, sessions, ask.id, COMMAND_BYTES, now_ms() + ANSWER_MS))
			reply_error(fd, "not_found", "no such session", 0);
		else if (send_long(fd, FRAME_SESSION, record.bytes, record.length))
			reply_ok(fd, &empty);
	} else {
		if (sessions >= 0)
			sessions_each(sessions, list_one, &fd);
		reply_ok(fd, &empty);
	}
	if (sessions >= 0)
		close(sessions);
}

/* SIGNAL, STOP, REMOVE */

static struct message message;

static bool exists(int sessions, const char *id)
{
	int folder = session_folder(sessions, id);
	if (folder >= 0)
		close(folder);
	return folder >= 0;
}

void request_session_signal(int fd, const struct frame *request)
{
	struct ask ask = {0};
	struct builder empty = {0};
	int sessions = open_asked(fd, request, &ask);
	if (sessions < 0)
		return;
	int keeper = keeper_connect(sessions, ask.id);
	ssize_t got = 0;
	message.operation = OPERATION_SIGNAL;
	message.a = (uint32_t)ask.number;
	if (keeper >= 0 && ask.number && keeper_send(keeper, &message, 0, now_ms() + REPLY_MS))
		got = keeper_receive(keeper, &message, now_ms() + REPLY_MS);
	if (!ask.number)
		reply_error(fd, "bad_request", "no signal's number", 0);
	else if (!exists(sessions, ask.id))
		reply_error(fd, "not_found", "no such session", 0);
	else if (got < 0 || keeper == -2)
		reply_error(fd, "busy", "the session's keeper does not answer", 0);
	else if (got > 0 && message.operation == OPERATION_DONE)
		reply_ok(fd, &empty);
	else
		reply_error(fd, "not_running", "the session has ended", 0);
	if (keeper >= 0)
		close(keeper);
	close(sessions);
}

/* True once the keeper has gone. False: at the deadline, or when the host went. fd -1: no matter the host. */
static bool wait_gone(int keeper, int fd, int64_t deadline)
{
	char ignored[1024];
	for (;;) {
		struct pollfd pollers[] = {{.fd = keeper, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
		if (until_ms(deadline) == 0)
			return false;
		if (poll(pollers, 2, until_ms(deadline)) <= 0)
			continue;
		if (pollers[0].revents && keeper_receive(keeper, &message, 0) == 0)
			return true;
		if (pollers[1].revents) {
			ssize_t got = read(fd, ignored, sizeof ignored);
			if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
				return false;
		}
	}
}

/* False: the session still runs. */
static bool end_session(int fd, int sessions, const char *id, enum operation operation, uint64_t grace)
{
	int keeper = keeper_connect(sessions, id);
	message.operation = operation;
	message.a = (uint32_t)grace;
	if (keeper == -1)
		return true;
	bool gone = false;
	if (keeper >= 0) {
		gone = !keeper_send(keeper, &message, 0, now_ms() + REPLY_MS) || wait_gone(keeper, fd, now_ms() + (int64_t)grace + END_MS);
		close(keeper);
	}
	return gone;
}

void request_session_stop(int fd, const struct frame *request)
{
	struct ask ask = {0};
	int sessions = open_asked(fd, request, &ask);
	if (sessions < 0)
		return;
	if (!exists(sessions, ask.id))
		reply_error(fd, "not_found", "no such session", 0);
	else if (end_session(fd, sessions, ask.id, OPERATION_STOP, ask.grace))
		reply_record(fd, sessions, ask.id, ANSWER_MS);
	else
		reply_error(fd, "failed", "the session has not ended", 0);
	close(sessions);
}

static void discard_folder(int sessions, const char *id)
{
	int folder = session_folder(sessions, id);
	DIR *entries = folder < 0 ? NULL : fdopendir(folder);
	if (!entries)
		return;
	/* Unlinking while reading may hide entries: again, until a round finds nothing to do. */
	for (int removed = 1; removed;) {
		removed = 0;
		rewinddir(entries);
		for (struct dirent *entry; (entry = readdir(entries));)
			removed += strcmp(entry->d_name, "session") && unlinkat(dirfd(entries), entry->d_name, 0) == 0;
	}
	unlinkat(dirfd(entries), "session", 0); /* last: until then it can be listed, and removed again */
	closedir(entries);
	unlinkat(sessions, id, AT_REMOVEDIR);
}

void request_session_remove(int fd, const struct frame *request)
{
	struct ask ask = {0};
	struct builder empty = {0};
	int sessions = open_asked(fd, request, &ask);
	if (sessions < 0)
		return;
	int keeper = keeper_connect(sessions, ask.id);
	if (keeper >= 0)
		close(keeper);
	if (!exists(sessions, ask.id)) {
		reply_error(fd, "not_found", "no such session", 0);
	} else if (keeper != -1 && !(ask.flags & SESSION_REMOVE_FORCE)) {
		reply_error(fd, "running", "the session is running", 0);
	} else if (!end_session(-1, sessions, ask.id, OPERATION_DISCARD, 0)) {
		reply_error(fd, "failed", "the session has not ended", 0);
	} else {
		discard_folder(sessions, ask.id);
		if (exists(sessions, ask.id))
			reply_error(fd, "failed", "cannot remove the session's folder", errno);
		else
			reply_ok(fd, &empty);
	}
	close(sessions);
}

/* ATTACH, LOGS, SEND */

static void show(int fd, const struct frame *request, void (*view)(int fd, const struct view_request *request))
{
	struct ask ask = {0};
	int sessions = open_asked(fd, request, &ask);
	if (sessions < 0)
		return;
	view(fd, &(struct view_request){
			 .id = ask.id,
			 .sessions = sessions,
			 .flags = ask.flags,
			 .rows = ask.rows,
			 .cols = ask.cols,
			 .tail = ask.tail,
			 .has_tail = ask.has_tail,
		 });
	close(sessions);
}

void request_session_attach(int fd, const struct frame *request)
{
	show(fd, request, view_attach);
}

void request_session_logs(int fd, const struct frame *request)
{
	show(fd, request, view_logs);
}

void request_session_send(int fd, const struct frame *request)
{
	show(fd, request, view_send);
}
