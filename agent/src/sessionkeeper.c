/* The keeper: a session's own process, which outlives connections and the server.
 *
 * It owns the command, appends its output to the logs, and tells whoever joined that they have grown: readers
 * read the logs themselves, so none of them can hold anything up. Nothing in here waits but poll. What the
 * disk does not take is held, and with it the command's output, and tried again; so is the final status.
 *
 * The end is that of stream.c: pipes that a background process keeps open are left after DRAIN_MS of silence
 * or DRAIN_BYTES. Then the status is written, and the keeper goes; that is how all who joined learn of it.
 */
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "shared.h"

#define MAX_CLIENTS 64
#define MAX_JOINED 48 /* the rest is for short questions */
#define MESSAGES_AT_ONCE 16 /* of one client, before others have their turn */
#define DRAIN_MS 100
#define DRAIN_BYTES (4 << 20)
#define LOOK_MS 1000   /* how often the machine's end is looked for */
#define RETRY_MS 500   /* for what the disk did not take */
#define HANGUP_MS 5000 /* systemd waits much longer */
#define INIT_HANGUP_MS 2500 /* the agent as init waits 5 s altogether */
#define END_OF_TRANSMISSION 4

struct output {
	int pipe, log;
	uint8_t bytes[65536]; /* what the log has yet to take */
	size_t start, length;
};

struct client {
	int fd; /* 0: none */
	bool joined, reader, notes, owes_note;
};

struct keeper {
	int folder, listener, signals;
	pid_t pid;
	int input;
	bool terminal;
	struct output outputs[SESSION_LOGS];
	struct client clients[MAX_CLIENTS];
	struct client *writer;
	uint8_t pending[WIRE_STDIN_WINDOW]; /* for stdin: a ring */
	size_t pending_start, pending_length;
	size_t owed_credit; /* to the writer */
	bool input_ends, terminal_ends; /* to be told to a pipe, a terminal */
	bool finishing;
	bool ended;	   /* the command has; it stays a zombie until the keeper goes */
	int64_t last_data; /* as in stream.c */
	bool quiet;
	size_t drained;
	bool stopping, discards;
	int64_t kill_at, retry_at, look_at;
	uint64_t started, updated, ended_at;
	char error[160];
	char stage[8], message[512];
};

static struct keeper keeper;
static struct message message;

static uint64_t seconds(void)
{
	return (uint64_t)time(NULL);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void put_state(struct builder *builder, const char *status)
{
	put_text(builder, SESSION_STATUS, status);
	if (keeper.pid)
		put_number(builder, SESSION_PID, (uint64_t)keeper.pid);
	if (keeper.started)
		put_number(builder, SESSION_STARTED, keeper.started);
	put_number(builder, SESSION_UPDATED, keeper.updated);
	put_text(builder, SESSION_LAUNCH_STAGE, keeper.stage);
	if (keeper.message[0])
		put_text(builder, SESSION_LAUNCH_MESSAGE, keeper.message);
	if (keeper.error[0])
		put_text(builder, SESSION_LAST_ERROR, keeper.error);
}

static const char *live_status(void)
{
	return keeper.stopping ? "stopping" : "running";
}

static bool write_status(const struct builder *status)
{
	return session_write(keeper.folder, "status", status->bytes, status->length);
}

static void disk_failed(void)
{
	format_text(keeper.error, sizeof keeper.error, "output is held back: %s", strerror(errno));
	keeper.retry_at = now_ms() + RETRY_MS;
}

/* Messages to those who joined. What a socket does not take now is owed. */

static bool tell(const struct client *client, enum operation operation, uint32_t a, uint32_t b)
{
	const struct {
		uint32_t operation, a, b;
	} small = {operation, a, b};
	return send(client->fd, &small, sizeof small, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 || errno != EAGAIN;
}

static void note_all(void)
{
	for (int i = 0; i < MAX_CLIENTS; i++)
		if (keeper.clients[i].fd && keeper.clients[i].notes)
			keeper.clients[i].owes_note = !tell(&keeper.clients[i], OPERATION_NOTE, 0, 0);
}

static void pay_credit(void)
{
	if (!keeper.writer)
		keeper.owed_credit = 0;
	else if (keeper.owed_credit && tell(keeper.writer, OPERATION_CREDIT, (uint32_t)keeper.owed_credit, 0))
		keeper.owed_credit = 0;
}

static void drop_client(struct client *client)
{
	close(client->fd);
	if (keeper.writer == client)
		keeper.writer = NULL;
	*client = (struct client){0};
}

/* The command's streams. */

static void drop_input(void)
{
	keeper.owed_credit += keeper.pending_length;
	keeper.pending_length = 0;
	close_fd(&keeper.input);
}

static void write_input(void)
{
	size_t length = sizeof keeper.pending - keeper.pending_start;
	if (length > keeper.pending_length)
		length = keeper.pending_length;
	ssize_t written = write(keeper.input, keeper.pending + keeper.pending_start, length);
	if (written < 0) {
		if (errno != EAGAIN && errno != EINTR)
			drop_input();
		return;
	}
	keeper.pending_start = (keeper.pending_start + (size_t)written) % sizeof keeper.pending;
	keeper.pending_length -= (size_t)written;
	keeper.owed_credit += (size_t)written;
}

/* False: more than there is credit for. */
static bool take_input(const uint8_t *bytes, size_t length)
{
	if (length > sizeof keeper.pending - keeper.pending_length - keeper.owed_credit)
		return false;
	if (keeper.input < 0 || keeper.input_ends) {
		keeper.owed_credit += length;
		return true;
	}
	size_t end = (keeper.pending_start + keeper.pending_length) % sizeof keeper.pending;
	size_t first = sizeof keeper.pending - end < length ? sizeof keeper.pending - end : length;
	memcpy(keeper.pending + end, bytes, first);
	memcpy(keeper.pending, bytes + first, length - first);
	keeper.pending_length += length;
	return true;
}

/* Once all before it is written: a terminal has a character for it, a pipe is closed. */
static void end_input(void)
{
	static const uint8_t end[] = {END_OF_TRANSMISSION};
	if (keeper.pending_length || keeper.input < 0)
		return;
	if (keeper.input_ends)
		close_fd(&keeper.input);
	else if (keeper.terminal_ends && (write(keeper.input, end, sizeof end) >= 0 || errno != EAGAIN))
		keeper.terminal_ends = false;
}

static bool flush(struct output *output)
{
	while (output->length) {
		ssize_t written = write(output->log, output->bytes + output->start, output->length);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0) {
			disk_failed();
			return false;
		}
		output->start += (size_t)written;
		output->length -= (size_t)written;
	}
	return true;
}

static void read_output(struct output *output)
{
	ssize_t got = read(output->pipe, output->bytes, sizeof output->bytes);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) { /* a terminal's last user gone is EIO */
		close_fd(&output->pipe);
		return;
	}
	output->start = 0;
	output->length = (size_t)got;
	keeper.last_data = now_ms();
	keeper.updated = seconds();
	if (keeper.ended)
		keeper.drained += (size_t)got;
	flush(output);
	note_all();
}

static bool held_back(void)
{
	return keeper.outputs[0].length || keeper.outputs[1].length;
}

static void retry(void)
{
	if (!held_back() || now_ms() < keeper.retry_at)
		return;
	if (flush(&keeper.outputs[0]) && flush(&keeper.outputs[1]))
		keeper.error[0] = 0;
	note_all();
}

static void look_for_end(void)
{
	struct signalfd_siginfo ignored;
	siginfo_t info = {0};
	while (read(keeper.signals, &ignored, sizeof ignored) > 0)
		;
	if (keeper.ended || waitid(P_PID, (id_t)keeper.pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid != keeper.pid)
		return;
	keeper.ended = true;
	keeper.last_data = now_ms();
	keeper.ended_at = keeper.updated = seconds();
	drop_input();
}

/* The command's end, when somebody wants it. */

static void end_command(int signal_number, int64_t patience)
{
	if (!keeper.stopping) {
		struct builder status = {0};
		keeper.stopping = true;
		keeper.updated = seconds();
		put_state(&status, live_status());
		write_status(&status); /* only for who looks after a crash */
	}
	if (!keeper.ended) {
		kill(-keeper.pid, patience ? signal_number : SIGKILL);
		kill(-keeper.pid, SIGCONT);
	}
	if (!keeper.kill_at || keeper.kill_at > now_ms() + patience)
		keeper.kill_at = now_ms() + patience;
}

static bool machine_ends(void)
{
	return !shared->on_host && (phase_now() == PHASE_SHUTDOWN || (!shared->agent_is_init && systemd_is_ending()));
}

/* Shells at a terminal ignore TERM. */
static void hang_up(void)
{
	if (!keeper.stopping && !keeper.ended)
		end_command(keeper.terminal ? SIGHUP : SIGTERM, shared->agent_is_init ? INIT_HANGUP_MS : HANGUP_MS);
}

static void look_around(void)
{
	int64_t now = now_ms();
	if (now >= keeper.look_at) {
		keeper.look_at = now + LOOK_MS;
		if (machine_ends())
			hang_up();
	}
	if (keeper.kill_at && now >= keeper.kill_at && !keeper.ended)
		kill(-keeper.pid, SIGKILL);
}

/* Requests. */

static void read_client(struct client *client);

static void join(struct client *client, uint32_t wish)
{
	uint32_t flags = 0, credit = 0;
	int joined = 0;
	for (int i = 0; i < MAX_CLIENTS; i++)
		joined += keeper.clients[i].fd && keeper.clients[i].joined;
	if (joined >= MAX_JOINED && !client->joined) {
		tell(client, OPERATION_FULL, 0, 0);
		return;
	}
	/* The writer may have gone already, and this only be the first to hear of it. */
	if (wish & JOIN_WRITE && keeper.writer && keeper.writer != client)
		read_client(keeper.writer);
	if (wish & JOIN_WRITE && !keeper.writer) {
		keeper.writer = client;
		keeper.owed_credit = 0;
		flags |= STARTED_FLAG_WRITER;
		credit = (uint32_t)(sizeof keeper.pending - keeper.pending_length);
	}
	if (keeper.input >= 0 && !keeper.input_ends)
		flags |= STARTED_FLAG_STDIN;
	client->joined = true;
	client->reader = wish & JOIN_READER;
	client->notes = wish & JOIN_NOTES;
	tell(client, OPERATION_JOINED, flags, credit);
}

static void send_record(const struct client *client)
{
	struct builder fields = {0};
	uint64_t readers = 0;
	for (int i = 0; i < MAX_CLIENTS; i++)
		readers += keeper.clients[i].fd && keeper.clients[i].reader;
	put_state(&fields, live_status());
	put_number(&fields, SESSION_READERS, readers);
	put_number(&fields, SESSION_WRITER, keeper.writer ? 1 : 0);
	put_number(&fields, SESSION_KEEPER_PID, (uint64_t)getpid());
	message.operation = OPERATION_RECORD;
	memcpy(message.bytes, fields.bytes, fields.length);
	send(client->fd, &message, MESSAGE_HEAD + fields.length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void signal_command(const struct client *client, uint32_t number)
{
	if (!keeper.ended && number > 0 && number <= 64)
		kill(-keeper.pid, (int)number);
	tell(client, keeper.ended ? OPERATION_GONE : OPERATION_DONE, 0, 0);
}

/* False: the client is not one of ours, or has lost its way. */
static bool take(struct client *client, size_t length)
{
	bool writes = keeper.writer == client;
	switch (message.operation) {
	case OPERATION_RECORD:
		send_record(client);
		return true;
	case OPERATION_JOIN:
		join(client, message.a);
		return true;
	case OPERATION_INPUT:
		return writes && take_input(message.bytes, length);
	case OPERATION_INPUT_END:
		if (writes)
			*(keeper.terminal ? &keeper.terminal_ends : &keeper.input_ends) = true;
		return writes;
	case OPERATION_RESIZE:
		if (writes && keeper.terminal && keeper.outputs[0].pipe >= 0)
			set_size(keeper.outputs[0].pipe, (uint16_t)message.a, (uint16_t)message.b);
		return writes;
	case OPERATION_SIGNAL:
		signal_command(client, message.a);
		return true;
	case OPERATION_STOP:
		end_command(SIGTERM, message.a);
		return true;
	case OPERATION_HANG_UP:
		hang_up();
		return true;
	case OPERATION_DISCARD:
		keeper.discards = true;
		end_command(SIGKILL, 0);
		return true;
	default:
		return false;
	}
}

static void read_client(struct client *client)
{
	for (int i = 0; i < MESSAGES_AT_ONCE; i++) {
		ssize_t got = recv(client->fd, &message, sizeof message, MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		/* Said once of one that left without reading all; what it sent comes after. */
		if (got < 0 && errno == ECONNRESET)
			continue;
		if (got < (ssize_t)MESSAGE_HEAD || !take(client, (size_t)got - MESSAGE_HEAD)) {
			drop_client(client);
			return;
		}
	}
}

static struct client *free_client(void)
{
	for (int i = 0; i < MAX_CLIENTS; i++)
		if (!keeper.clients[i].fd)
			return &keeper.clients[i];
	return NULL;
}

static void accept_client(void)
{
	struct ucred peer;
	socklen_t size = sizeof peer;
	int fd = accept4(keeper.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	bool trusted = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
	struct client *client = free_client();
	if (trusted && client)
		*client = (struct client){.fd = fd};
	else
		close(fd);
}

/* The loop. */

enum { LISTENER, SIGNALS, INPUT, OUTPUT, CLIENTS = OUTPUT + SESSION_LOGS, POLLERS = CLIENTS + MAX_CLIENTS };

static int patience(void)
{
	int64_t until = keeper.look_at, now = now_ms();
	if (keeper.kill_at && !keeper.ended && keeper.kill_at < until)
		until = keeper.kill_at > now ? keeper.kill_at : now + 50;
	if ((held_back() || keeper.finishing) && keeper.retry_at < until)
		until = keeper.retry_at;
	if (keeper.ended && !keeper.finishing && !held_back()) {
		int64_t silence = now - keeper.last_data;
		return silence >= DRAIN_MS ? 0 : (int)(DRAIN_MS - silence);
	}
	return until_ms(until);
}

static void poll_once(void)
{
	bool reading = !held_back();
	struct pollfd pollers[POLLERS];
	pollers[LISTENER] = (struct pollfd){.fd = free_client() ? keeper.listener : -1, .events = POLLIN};
	pollers[SIGNALS] = (struct pollfd){.fd = keeper.signals, .events = POLLIN};
	pollers[INPUT] = (struct pollfd){.fd = keeper.pending_length || keeper.terminal_ends ? keeper.input : -1, .events = POLLOUT};
	for (int i = 0; i < SESSION_LOGS; i++)
		pollers[OUTPUT + i] = (struct pollfd){.fd = reading ? keeper.outputs[i].pipe : -1, .events = POLLIN};
	for (int i = 0; i < MAX_CLIENTS; i++) {
		const struct client *client = &keeper.clients[i];
		bool owed = client->owes_note || (client == keeper.writer && keeper.owed_credit);
		pollers[CLIENTS + i] = (struct pollfd){.fd = client->fd ? client->fd : -1, .events = (short)(POLLIN | (owed ? POLLOUT : 0))};
	}
	if (!reading)
		keeper.last_data = now_ms();
	int64_t silence = now_ms() - keeper.last_data;
	if (poll(pollers, POLLERS, patience()) < 0)
		return;
	keeper.quiet = keeper.ended && reading && silence >= DRAIN_MS && !pollers[OUTPUT].revents && !pollers[OUTPUT + 1].revents;
	/* The end first: what is read after it is known is all. */
	if (pollers[SIGNALS].revents)
		look_for_end();
	for (int i = 0; i < SESSION_LOGS; i++)
		if (pollers[OUTPUT + i].revents && keeper.outputs[i].pipe >= 0)
			read_output(&keeper.outputs[i]);
	for (int i = 0; i < MAX_CLIENTS; i++) {
		struct client *client = &keeper.clients[i];
		/* A slot may have been emptied meanwhile, but is only filled below. */
		if (client->fd && pollers[CLIENTS + i].revents & POLLOUT && client->owes_note)
			client->owes_note = !tell(client, OPERATION_NOTE, 0, 0);
		if (client->fd && pollers[CLIENTS + i].revents & (POLLIN | POLLHUP | POLLERR))
			read_client(client);
	}
	if (keeper.input >= 0 && keeper.pending_length)
		write_input();
	end_input();
	pay_credit();
	if (pollers[LISTENER].revents)
		accept_client();
}

static bool drained(void)
{
	if (keeper.discards && keeper.ended)
		return true;
	return keeper.ended && !held_back() &&
	       ((keeper.outputs[0].pipe < 0 && keeper.outputs[1].pipe < 0) || keeper.quiet || keeper.drained > DRAIN_BYTES);
}

/* The final status, when the disk takes it. */
static void finish(void)
{
	siginfo_t info = {0};
	struct builder status = {0};
	waitid(P_PID, (id_t)keeper.pid, &info, WEXITED | WNOHANG | WNOWAIT);
	/* Who stops a session means all of it; the zombie still keeps its group's number. */
	if (keeper.stopping)
		kill(-keeper.pid, SIGKILL);
	keeper.finishing = true;
	for (int i = 0; i < SESSION_LOGS; i++)
		close_fd(&keeper.outputs[i].pipe);
	keeper.error[0] = 0;
	put_state(&status, "exited");
	put_number(&status, SESSION_ENDED, keeper.ended_at);
	if (info.si_code == CLD_EXITED)
		put_number(&status, SESSION_EXIT_CODE, (uint64_t)info.si_status);
	else
		put_number(&status, SESSION_EXIT_SIGNAL, (uint64_t)info.si_status);
	/* Without a folder there is no session any more. */
	while (!write_status(&status) && errno != ENOENT && !keeper.discards && !machine_ends()) {
		disk_failed();
		keeper.look_at = keeper.retry_at;
		do
			poll_once();
		while (now_ms() < keeper.retry_at && !keeper.discards);
	}
}

static void close_others(const int kept[2])
{
	/* Low numbers, so that all above them can go. */
	int first = fcntl(kept[0], F_DUPFD_CLOEXEC, 64), second = fcntl(kept[1], F_DUPFD_CLOEXEC, 64);
	keeper.folder = dup3(first, 3, O_CLOEXEC);
	keeper.listener = dup3(second, 4, O_CLOEXEC);
	if (syscall(SYS_close_range, 5U, ~0U, 0U) < 0)
		for (int fd = 5; fd < 1024; fd++)
			close(fd);
}

static void launch_failed(const char *code)
{
	struct builder status = {0};
	format_text(keeper.stage, sizeof keeper.stage, "%s", !strcmp(code, "no_user") ? "user" : !strcmp(code, "no_cwd") ? "cwd" : "exec");
	format_text(keeper.error, sizeof keeper.error, "%.150s", keeper.message);
	keeper.ended_at = keeper.updated = seconds();
	put_state(&status, "failed");
	put_number(&status, SESSION_ENDED, keeper.ended_at);
	/* What a shell would exit with; the rest is no command's end. */
	if (!strcmp(code, "not_found") || !strcmp(code, "not_executable"))
		put_number(&status, SESSION_EXIT_CODE, !strcmp(code, "not_found") ? 127 : 126);
	if (!write_status(&status))
		say("cannot write a session's status: %s", strerror(errno));
	unlinkat(keeper.folder, KEEPER_SOCKET, 0);
	_exit(0);
}

void keeper_run(int folder, int listener, const struct asked *asked)
{
	struct spawned spawned;
	struct builder status = {0};
	sigset_t child;
	int error = 0;
	setsid();
	prctl(PR_SET_NAME, KEEPER_NAME);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	close_others((const int[]){folder, listener});
	keeper.signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	keeper.updated = seconds();
	for (int i = 0; i < SESSION_LOGS; i++) {
		keeper.outputs[i].log = openat(keeper.folder, session_logs[i], O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (keeper.outputs[i].log < 0) {
			format_text(keeper.message, sizeof keeper.message, "cannot write %s: %s", session_logs[i], strerror(errno));
			launch_failed("failed");
		}
	}
	const char *code = command_start(asked, &spawned, keeper.message, sizeof keeper.message, &error);
	if (code)
		launch_failed(code);
	keeper.pid = spawned.pid;
	keeper.input = spawned.input;
	keeper.outputs[0].pipe = spawned.output;
	keeper.outputs[1].pipe = spawned.errors;
	keeper.terminal = asked->flags & EXEC_FLAG_TERMINAL;
	keeper.last_data = now_ms();
	keeper.started = keeper.updated = seconds();
	format_text(keeper.stage, sizeof keeper.stage, "running");
	put_state(&status, "running");
	write_status(&status); /* only for who looks after a crash */
	while (!drained()) {
		poll_once();
		retry();
		look_around();
	}
	finish();
	unlinkat(keeper.folder, KEEPER_SOCKET, 0);
	_exit(0);
}
