/* Shows a session to a host, in the connection's own process: attach, logs, send.
 *
 * Output comes from the log files, at this reader's own offsets; the keeper only says when they have grown.
 * So one who reads slowly, or not at all, holds up neither the command nor anybody else. What is buffered is
 * bounded: one frame for the host, and for the keeper the window of stdin.
 */
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base.h"
#include "relay.h"
#include "requests.h"

#define REPLY_MS 10000
#define KEEPER_MS 30000 /* it writes to a disk that may be slow */
#define AFTER_MS 10000	/* for the client's last SEEN, after EXIT */
#define SEEN_MS 1000

enum shown { SHOWS_ATTACHED, SHOWS_LOGS, SHOWS_NOTHING };

struct view {
	enum shown shows;
	int fd, folder, keeper; /* keeper: -1 where the session has ended */
	int logs[SESSION_LOGS];
	uint64_t offsets[SESSION_LOGS], limits[SESSION_LOGS], seen[SESSION_LOGS];
	int turn;
	bool fresh; /* the logs may hold more than was read */
	bool seen_news;
	int64_t seen_written;
	bool writer, detached, host_gone;
	const char *code, *refused; /* why the exchange ends with ERROR */
	uint8_t in[FRAME_BYTES];
	size_t in_length;
	uint8_t out[FRAME_BYTES + CONTROL_BYTES];
	size_t out_start, out_length;
	uint8_t pending[WIRE_STDIN_WINDOW]; /* for the keeper: a ring */
	size_t pending_start, pending_length;
	size_t consumed, credit;
	bool input_ends, input_ended;
};

static struct message message;

static void refuse(struct view *view, const char *code, const char *why)
{
	if (!view->refused) {
		view->code = code;
		view->refused = why;
	}
}

/* What the client has seen, for whoever attaches next. */

static void read_seen(struct view *view)
{
	struct frame seen;
	session_read(view->folder, "seen", &seen);
	session_number(&seen, SEEN_STDOUT_OFFSET, &view->seen[0]);
	session_number(&seen, SEEN_STDERR_OFFSET, &view->seen[1]);
	frame_free(&seen);
}

static void write_seen(struct view *view)
{
	struct builder builder = {0};
	if (!view->seen_news)
		return;
	view->seen_news = false;
	view->seen_written = now_ms();
	put_number(&builder, SEEN_STDOUT_OFFSET, view->seen[0]);
	put_number(&builder, SEEN_STDERR_OFFSET, view->seen[1]);
	/* A full disk costs the next one a repetition. */
	session_write(view->folder, "seen", builder.bytes, builder.length);
}

static bool take_seen(struct view *view, const struct frame *frame)
{
	uint64_t seen[SESSION_LOGS] = {0};
	if (!session_number(frame, SEEN_STDOUT_OFFSET, &seen[0]) || !session_number(frame, SEEN_STDERR_OFFSET, &seen[1]))
		return false;
	for (int i = 0; i < SESSION_LOGS; i++)
		view->seen[i] = seen[i] < view->offsets[i] ? seen[i] : view->offsets[i];
	view->seen_news = true;
	if (now_ms() - view->seen_written >= SEEN_MS)
		write_seen(view);
	return true;
}

/* To the keeper. */

static void keeper_is_gone(struct view *view)
{
	if (view->keeper >= 0)
		close(view->keeper);
	view->keeper = -1;
	view->fresh = true;
	view->consumed += view->pending_length;
	view->pending_length = 0;
}

static void order(struct view *view, enum operation operation, uint64_t a, uint64_t b)
{
	message.operation = operation;
	message.a = (uint32_t)a;
	message.b = (uint32_t)b;
	if (view->keeper >= 0 && !keeper_send(view->keeper, &message, 0, now_ms() + KEEPER_MS))
		keeper_is_gone(view);
}

static void pass_input(struct view *view)
{
	while (view->keeper >= 0 && view->pending_length && view->credit) {
		size_t length = sizeof view->pending - view->pending_start;
		length = length < view->pending_length ? length : view->pending_length;
		length = length < view->credit ? length : view->credit;
		length = length < SESSION_PIECE ? length : SESSION_PIECE;
		message.operation = OPERATION_INPUT;
		memcpy(message.bytes, view->pending + view->pending_start, length);
		if (!keeper_send(view->keeper, &message, length, now_ms() + KEEPER_MS)) {
			keeper_is_gone(view);
			return;
		}
		view->pending_start = (view->pending_start + length) % sizeof view->pending;
		view->pending_length -= length;
		view->credit -= length;
		view->consumed += length;
	}
	if (view->input_ends && !view->input_ended && !view->pending_length) {
		view->input_ended = view->shows == SHOWS_NOTHING;
		view->input_ends = view->input_ended;
		if (view->shows != SHOWS_NOTHING)
			order(view, OPERATION_INPUT_END, 0, 0);
	}
}

static void hear_keeper(struct view *view)
{
	ssize_t got;
	while (view->keeper >= 0 && (got = keeper_receive(view->keeper, &message, 0)) >= 0) {
		if (got == 0)
			keeper_is_gone(view);
		else if (message.operation == OPERATION_CREDIT)
			view->credit += message.a;
		else if (message.operation == OPERATION_NOTE)
			view->fresh = true;
	}
}

/* From the host. */

static void take_stdin(struct view *view, const uint8_t *bytes, size_t length)
{
	if (!view->writer) {
		refuse(view, "busy", "another client writes to the session");
		return;
	}
	if (length > sizeof view->pending - view->pending_length - view->consumed) {
		refuse(view, "bad_request", "more stdin than the window allows");
		return;
	}
	if (length == 0)
		view->input_ends = true;
	if (view->keeper < 0) {
		view->consumed += length;
		return;
	}
	size_t end = (view->pending_start + view->pending_length) % sizeof view->pending;
	size_t first = sizeof view->pending - end < length ? sizeof view->pending - end : length;
	memcpy(view->pending + end, bytes, first);
	memcpy(view->pending, bytes + first, length - first);
	view->pending_length += length;
}

static void take_frame(struct view *view, uint8_t type, uint8_t *payload, size_t length)
{
	const struct frame frame = {.type = type, .length = (uint32_t)length, .payload = payload};
	uint64_t first = 0, second = 0;
	bool fine = true;
	switch (type) {
	case FRAME_STDIN:
		if (view->shows != SHOWS_LOGS)
			take_stdin(view, payload, length);
		return;
	case FRAME_RESIZE:
		fine = session_number(&frame, RESIZE_ROWS, &first) && session_number(&frame, RESIZE_COLS, &second) &&
		       first <= UINT16_MAX && second <= UINT16_MAX;
		if (fine && view->writer)
			order(view, OPERATION_RESIZE, first, second);
		break;
	case FRAME_SIGNAL:
		fine = session_number(&frame, SIGNAL_NUMBER, &first) && first > 0 && first <= 64;
		if (fine && view->writer)
			order(view, OPERATION_SIGNAL, first, 0);
		break;
	case FRAME_SESSION_SEEN:
		fine = view->shows != SHOWS_ATTACHED || take_seen(view, &frame);
		break;
	case FRAME_SESSION_DETACH:
		view->detached = true;
		break;
	default:
		break; /* of a newer host */
	}
	if (!fine)
		refuse(view, "bad_request", "malformed frame");
}

static void read_host(struct view *view)
{
	ssize_t got = read(view->fd, view->in + view->in_length, sizeof view->in - view->in_length);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		view->host_gone = true;
		return;
	}
	view->in_length += (size_t)got;
	size_t start = 0;
	while (!view->refused && !view->detached && view->in_length - start >= WIRE_HEADER_BYTES) {
		uint8_t *at = view->in + start;
		size_t length = frame_length(at);
		if (length > WIRE_MAX_PAYLOAD) {
			refuse(view, "bad_request", "frame too long");
			return;
		}
		if (view->in_length - start < WIRE_HEADER_BYTES + length)
			break;
		take_frame(view, at[4], at + WIRE_HEADER_BYTES, length);
		start += WIRE_HEADER_BYTES + length;
	}
	memmove(view->in, view->in + start, view->in_length - start);
	view->in_length -= start;
}

/* To the host. */

static void write_host(struct view *view)
{
	ssize_t sent = send_some(view->fd, view->out + view->out_start, view->out_length);
	if (sent >= 0) {
		view->out_start += (size_t)sent;
		view->out_length -= (size_t)sent;
	} else if (errno != EAGAIN && errno != EINTR) {
		view->host_gone = true;
	}
}

/* Behind at most one frame of output, so there is always room. */
static void put_frame(struct view *view, uint8_t type, const struct builder *builder)
{
	memmove(view->out, view->out + view->out_start, view->out_length);
	view->out_start = 0;
	if (builder->length + WIRE_HEADER_BYTES > sizeof view->out - view->out_length)
		return;
	uint8_t *at = view->out + view->out_length;
	frame_header(at, type, (uint32_t)builder->length);
	memcpy(at + WIRE_HEADER_BYTES, builder->bytes, builder->length);
	view->out_length += WIRE_HEADER_BYTES + builder->length;
}

static void grant(struct view *view)
{
	struct builder builder = {0};
	if (view->consumed < GRANT_BYTES || view->out_length > FRAME_BYTES)
		return;
	put_number(&builder, WINDOW_BYTES, view->consumed);
	put_frame(view, FRAME_WINDOW, &builder);
	view->consumed = 0;
}

/* The next piece of a log, as a frame. False: both are at their end, for now. */
static bool fill(struct view *view)
{
	static const uint8_t types[SESSION_LOGS] = {FRAME_STDOUT, FRAME_STDERR};
	for (int tries = 0; tries < SESSION_LOGS; tries++) {
		int i = view->turn;
		view->turn = (view->turn + 1) % SESSION_LOGS;
		uint64_t left = view->limits[i] - view->offsets[i];
		if (view->logs[i] < 0 || view->offsets[i] >= view->limits[i])
			continue;
		size_t most = left < WIRE_MAX_PAYLOAD ? (size_t)left : WIRE_MAX_PAYLOAD;
		ssize_t got = pread(view->logs[i], view->out + WIRE_HEADER_BYTES, most, (off_t)view->offsets[i]);
		if (got <= 0)
			continue;
		frame_header(view->out, types[i], (uint32_t)got);
		view->out_start = 0;
		view->out_length = WIRE_HEADER_BYTES + (size_t)got;
		view->offsets[i] += (uint64_t)got;
		return true;
	}
	return false;
}

static bool over(const struct view *view)
{
	if (view->host_gone || view->refused || view->detached)
		return true;
	if (view->shows == SHOWS_NOTHING)
		return view->keeper < 0 || view->input_ended;
	return view->keeper < 0 && !view->fresh && !view->out_length;
}

static void relay(struct view *view)
{
	while (!over(view)) {
		if (!view->out_length && view->fresh)
			view->fresh = fill(view);
		grant(view);
		if (view->out_length)
			write_host(view);
		bool more = view->fresh && !view->out_length;
		struct pollfd pollers[] = {
			{.fd = view->fd, .events = (short)(POLLIN | (view->out_length ? POLLOUT : 0))},
			{.fd = view->keeper, .events = POLLIN},
		};
		if (over(view) || poll(pollers, 2, more ? 0 : -1) < 0)
			continue;
		if (pollers[0].revents & (POLLIN | POLLHUP | POLLERR))
			read_host(view);
		if (pollers[1].revents)
			hear_keeper(view);
		pass_input(view);
	}
}

static void flush(struct view *view)
{
	while (view->out_length && !view->host_gone) {
		struct pollfd poller = {.fd = view->fd, .events = POLLOUT};
		/* As slow as the host likes, as long as it is there. */
		poll(&poller, 1, -1);
		write_host(view);
	}
}

static void send_last(struct view *view, uint8_t type, const struct builder *builder)
{
	put_frame(view, type, builder);
	flush(view);
}

static void send_error(struct view *view, const char *code, const char *why)
{
	struct builder builder = {0};
	put_text(&builder, ERROR_CODE, code);
	put_text(&builder, ERROR_MESSAGE, why);
	send_last(view, FRAME_ERROR, &builder);
}

/* EXIT, or why there is none. */
static void send_exit(struct view *view, const struct view_request *request)
{
	static struct record record;
	struct builder builder = {0};
	char why[512] = "the session was removed", status[16] = "";
	uint64_t number;
	if (session_record(&record, request->sessions, request->id, 0, now_ms() + REPLY_MS)) {
		format_text(why, sizeof why, "the session has failed");
		session_text(&record.status, SESSION_LAST_ERROR, why, sizeof why);
		session_text(&record.status, SESSION_STATUS, status, sizeof status);
		/* Of a failed launch the reason says more than a status, which the record has. */
		bool failed = !strcmp(status, "failed");
		if (!failed && session_number(&record.status, SESSION_EXIT_CODE, &number))
			put_number(&builder, EXIT_CODE, number);
		else if (!failed && session_number(&record.status, SESSION_EXIT_SIGNAL, &number))
			put_number(&builder, EXIT_SIGNAL, number);
	}
	if (!builder.length) {
		send_error(view, "failed", why);
		return;
	}
	send_last(view, FRAME_EXIT, &builder);
	/* The client says what it has seen of this. */
	int64_t deadline = now_ms() + AFTER_MS;
	struct pollfd poller = {.fd = view->fd, .events = POLLIN};
	while (!view->host_gone && !view->refused && !view->detached && poll(&poller, 1, until_ms(deadline)) > 0) {
		read_host(view);
		write_seen(view);
	}
}

/* All is done and written before the answer: who asks again at once finds it so. */
static void detach(struct view *view)
{
	write_seen(view);
	if (view->keeper >= 0)
		close(view->keeper);
	view->keeper = -1;
	send_last(view, FRAME_OK, &(struct builder){0});
}

static void close_view(struct view *view)
{
	write_seen(view);
	if (view->keeper >= 0)
		close(view->keeper);
	for (int i = 0; i < SESSION_LOGS; i++)
		if (view->logs[i] >= 0)
			close(view->logs[i]);
	if (view->folder >= 0)
		close(view->folder);
	free(view);
}

/* NULL, with the host told why. */
static struct view *open_view(int fd, const struct view_request *request, enum shown shows)
{
	struct view *view = calloc(1, sizeof *view);
	int folder = view ? session_folder(request->sessions, request->id) : -1;
	if (folder < 0) {
		reply_error(fd, view ? "not_found" : "failed", view ? "no such session" : "no memory", 0);
		free(view);
		return NULL;
	}
	view->fd = fd;
	view->folder = folder;
	view->shows = shows;
	view->keeper = -1;
	view->fresh = true;
	for (int i = 0; i < SESSION_LOGS; i++) {
		view->logs[i] = openat(folder, session_logs[i], O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		view->limits[i] = UINT64_MAX;
	}
	return view;
}

/* Joins the keeper where there is one; view->keeper is -1 where there is none. NULL, or why that fails. */
static const char *join(struct view *view, const struct view_request *request, uint32_t wish, uint32_t *flags)
{
	static const char silent[] = "the session's keeper does not answer";
	*flags = 0;
	view->keeper = keeper_connect(request->sessions, request->id);
	if (view->keeper == -2) {
		view->keeper = -1;
		return silent;
	}
	if (view->keeper < 0)
		return NULL;
	message.operation = OPERATION_JOIN;
	message.a = wish;
	ssize_t got = 0;
	if (keeper_send(view->keeper, &message, 0, now_ms() + KEEPER_MS))
		do
			got = keeper_receive(view->keeper, &message, now_ms() + KEEPER_MS);
		while (got > 0 && message.operation != OPERATION_JOINED && message.operation != OPERATION_FULL);
	if (got < 0)
		return silent;
	if (got == 0) {
		keeper_is_gone(view);
		return NULL;
	}
	if (message.operation == OPERATION_FULL)
		return "too many look at the session";
	*flags = message.a;
	view->credit = message.b;
	view->writer = *flags & STARTED_FLAG_WRITER;
	return NULL;
}

static uint64_t log_size(const struct view *view, int i)
{
	struct stat status;
	return view->logs[i] >= 0 && fstat(view->logs[i], &status) == 0 ? (uint64_t)status.st_size : 0;
}

static uint64_t session_pid(const struct view_request *request)
{
	static struct record record;
	uint64_t pid = 0;
	if (session_record(&record, request->sessions, request->id, 0, now_ms() + REPLY_MS))
		session_number(&record.status, SESSION_PID, &pid);
	return pid;
}

void view_attach(int fd, const struct view_request *request)
{
	struct view *view = open_view(fd, request, SHOWS_ATTACHED);
	struct builder started = {0};
	uint32_t flags, wish = JOIN_READER | JOIN_NOTES | (request->flags & SESSION_ATTACH_WRITE ? JOIN_WRITE : 0);
	if (!view)
		return;
	const char *why = join(view, request, wish, &flags);
	if (why) {
		reply_error(fd, "busy", why, 0);
		close_view(view);
		return;
	}
	read_seen(view);
	for (int i = 0; i < SESSION_LOGS; i++) {
		uint64_t size = log_size(view, i);
		if (!(request->flags & SESSION_ATTACH_ALL))
			view->offsets[i] = request->flags & SESSION_ATTACH_NOW || view->seen[i] > size ? size : view->seen[i];
	}
	if (view->writer && request->rows && request->cols)
		order(view, OPERATION_RESIZE, request->rows, request->cols);
	put_number(&started, STARTED_PID, session_pid(request));
	put_number(&started, STARTED_FLAGS, flags);
	put_number(&started, STARTED_STDOUT_OFFSET, view->offsets[0]);
	put_number(&started, STARTED_STDERR_OFFSET, view->offsets[1]);
	send_last(view, FRAME_STARTED, &started);
	relay(view);
	if (!view->refused && !view->detached && !view->host_gone)
		send_exit(view, request);
	if (view->refused)
		send_error(view, view->code, view->refused);
	else if (view->detached)
		detach(view);
	close_view(view);
}

/* Where the last `lines` lines of a log begin. */
static uint64_t tail_offset(int log, uint64_t size, uint64_t lines)
{
	static uint8_t block[65536];
	uint64_t end = size;
	bool last = true; /* the newline that ends the last line begins none */
	while (end > 0) {
		size_t length = end < sizeof block ? (size_t)end : sizeof block;
		if (lines == 0 || pread(log, block, length, (off_t)(end - length)) != (ssize_t)length)
			return size;
		for (size_t at = length; at > 0; at--) {
			if (block[at - 1] == '\n' && !last && --lines == 0)
				return end - length + at;
			last = false;
		}
		end -= length;
	}
	return 0;
}

void view_logs(int fd, const struct view_request *request)
{
	struct view *view = open_view(fd, request, SHOWS_LOGS);
	uint64_t only = request->flags & (SESSION_LOGS_STDOUT | SESSION_LOGS_STDERR);
	uint32_t flags;
	if (!view)
		return;
	const char *why = request->flags & SESSION_LOGS_FOLLOW ? join(view, request, JOIN_NOTES, &flags) : NULL;
	if (why) {
		reply_error(fd, "busy", why, 0);
		close_view(view);
		return;
	}
	for (int i = 0; i < SESSION_LOGS; i++) {
		uint64_t size = log_size(view, i);
		if (only && !(only & (i ? SESSION_LOGS_STDERR : SESSION_LOGS_STDOUT)))
			view->limits[i] = 0;
		else if (!(request->flags & SESSION_LOGS_FOLLOW))
			view->limits[i] = size;
		if (view->limits[i] && request->has_tail && view->logs[i] >= 0)
			view->offsets[i] = tail_offset(view->logs[i], size, request->tail);
	}
	relay(view);
	if (view->refused)
		send_error(view, view->code, view->refused);
	else if (!view->host_gone)
		send_last(view, FRAME_OK, &(struct builder){0});
	close_view(view);
}

void view_send(int fd, const struct view_request *request)
{
	struct view *view = open_view(fd, request, SHOWS_NOTHING);
	uint32_t flags;
	if (!view)
		return;
	const char *why = join(view, request, JOIN_WRITE, &flags);
	if (why)
		refuse(view, "busy", why);
	else if (view->keeper < 0)
		refuse(view, "not_running", "the session has ended");
	else if (!view->writer)
		refuse(view, "busy", "another client writes to the session");
	else if (!(flags & STARTED_FLAG_STDIN))
		refuse(view, "closed", "the session's stdin is closed");
	view->fresh = false;
	relay(view);
	if (view->input_ended && view->keeper >= 0 && request->flags & SESSION_SEND_END)
		order(view, OPERATION_INPUT_END, 0, 0);
	if (view->keeper < 0)
		refuse(view, "not_running", "the session has ended");
	if (view->refused)
		send_error(view, view->code, view->refused);
	else if (!view->host_gone)
		detach(view);
	close_view(view);
}
