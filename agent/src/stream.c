/* Relays stdin, stdout, stderr, resizes and signals between one connection and one command.
 *
 * Nothing in here blocks but poll. What is buffered is bounded: stdin by the window that the host may fill
 * (so that the socket can always be read, and a signal never waits behind data), output by one frame of
 * each pipe behind what the socket has not taken yet.
 *
 * The end: once the command itself has ended, what its pipes hold is still sent. A pipe that some background
 * process keeps open ends the wait after DRAIN_MS without data, or when more than DRAIN_BYTES came after
 * the end. A host that goes away is a hangup: HUP to the process group, KILL after HANGUP_MS.
 */
#include "stream.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"
#include "relay.h"
#include "shared.h"

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static size_t out_room(struct stream *stream)
{
	if (stream->out_start && stream->out_length)
		memmove(stream->out, stream->out + stream->out_start, stream->out_length);
	stream->out_start = 0;
	return sizeof stream->out - stream->out_length;
}

static bool put_frame(struct stream *stream, uint8_t type, const void *payload, size_t length)
{
	if (out_room(stream) < WIRE_HEADER_BYTES + length)
		return false;
	uint8_t *at = stream->out + stream->out_length;
	frame_header(at, type, (uint32_t)length);
	memcpy(at + WIRE_HEADER_BYTES, payload, length);
	stream->out_length += WIRE_HEADER_BYTES + length;
	return true;
}

static bool may_read_output(const struct stream *stream)
{
	return stream->host_gone || stream->out_length <= FRAME_BYTES;
}

static void grant(struct stream *stream)
{
	struct builder builder = {0};
	/* Always room for these but when the host takes nothing; then they wait and add up. */
	if (stream->consumed < GRANT_BYTES || out_room(stream) < CONTROL_BYTES)
		return;
	put_number(&builder, WINDOW_BYTES, stream->consumed);
	if (put_frame(stream, FRAME_WINDOW, builder.bytes, builder.length))
		stream->consumed = 0;
}

static void host_is_gone(struct stream *stream)
{
	if (stream->host_gone)
		return;
	stream->host_gone = true;
	stream->out_length = 0;
	stream->hangup_deadline = now_ms() + HANGUP_MS;
	if (!stream->ended)
		kill(-stream->pid, SIGHUP);
	close_fd(&stream->input);
	close_fd(&stream->output);
	close_fd(&stream->errors);
}

/* stdin: the command took no more, or has closed it. What is left is as good as read. */
static void drop_input(struct stream *stream)
{
	stream->consumed += stream->pending_length;
	stream->pending_length = 0;
	close_fd(&stream->input);
}

static void write_socket(struct stream *stream)
{
	ssize_t sent = send_some(stream->fd, stream->out + stream->out_start, stream->out_length);
	if (sent >= 0) {
		stream->out_start += (size_t)sent;
		stream->out_length -= (size_t)sent;
	} else if (errno != EAGAIN && errno != EINTR) {
		host_is_gone(stream);
	}
}

static void write_input(struct stream *stream)
{
	size_t length = sizeof stream->pending - stream->pending_start;
	if (length > stream->pending_length)
		length = stream->pending_length;
	ssize_t written = write(stream->input, stream->pending + stream->pending_start, length);
	if (written < 0) {
		if (errno != EAGAIN && errno != EINTR)
			drop_input(stream);
		return;
	}
	stream->pending_start = (stream->pending_start + (size_t)written) % sizeof stream->pending;
	stream->pending_length -= (size_t)written;
	stream->consumed += (size_t)written;
}

static void read_output(struct stream *stream, int *fd, uint8_t type)
{
	if (out_room(stream) < FRAME_BYTES)
		return;
	uint8_t *at = stream->out + stream->out_length;
	ssize_t got = read(*fd, at + WIRE_HEADER_BYTES, WIRE_MAX_PAYLOAD);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) { /* a terminal's last user gone is EIO */
		close_fd(fd);
		return;
	}
	frame_header(at, type, (uint32_t)got);
	stream->out_length += WIRE_HEADER_BYTES + (size_t)got;
	stream->last_data = now_ms();
	if (stream->ended)
		stream->drained += (size_t)got;
}

static void look_for_end(struct stream *stream)
{
	struct signalfd_siginfo ignored;
	siginfo_t info = {0};
	while (read(stream->signals, &ignored, sizeof ignored) > 0)
		;
	if (!stream->ended && waitid(P_PID, (id_t)stream->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == stream->pid) {
		stream->ended = true;
		stream->last_data = now_ms();
		drop_input(stream);
	}
}

/* systemd spares this process but ends the command with TERM, which shells at a terminal ignore for its
 * 90 seconds. When pid 1 is at its very end, the command gets the hangup that a terminal's end would be. */
static void look_at_pid1(struct stream *stream)
{
	if (stream->hangup_deadline || stream->ended || !systemd_is_ending())
		return;
	kill(-stream->pid, SIGHUP);
	stream->hangup_deadline = now_ms() + HANGUP_MS;
}

/* True when all there is to send is in the buffer. */
static bool drained(const struct stream *stream)
{
	return stream->ended && ((stream->output < 0 && stream->errors < 0) || stream->quiet || stream->drained > DRAIN_BYTES);
}

static void poll_once(struct stream *stream)
{
	bool reading = may_read_output(stream);
	struct pollfd pollers[] = {
		{.fd = stream->host_gone ? -1 : stream->fd, .events = (short)(POLLIN | (stream->out_length ? POLLOUT : 0))},
		{.fd = stream->signals, .events = POLLIN},
		{.fd = stream->pending_length ? stream->input : -1, .events = POLLOUT},
		{.fd = reading ? stream->output : -1, .events = POLLIN},
		{.fd = reading ? stream->errors : -1, .events = POLLIN},
	};
	/* Quiet is what a poll has seen, never just time that went by: this process may not have run meanwhile,
	 * or not have looked because the host is slow. */
	if (!reading)
		stream->last_data = now_ms();
	int64_t silence = now_ms() - stream->last_data;
	int timeout = !stream->ended ? LOOK_MS : silence >= DRAIN_MS ? 0 : (int)(DRAIN_MS - silence);
	if (poll(pollers, 5, timeout) < 0)
		return;
	stream->quiet = stream->ended && reading && silence >= DRAIN_MS && !pollers[3].revents && !pollers[4].revents;
	/* The end is looked for before output is read: what is read after it is known to have ended is all. */
	if (pollers[1].revents)
		look_for_end(stream);
	if (pollers[0].revents & POLLOUT)
		write_socket(stream);
	if (pollers[0].revents & (POLLIN | POLLHUP | POLLERR) && !read_socket(stream))
		host_is_gone(stream);
	if (pollers[2].revents && stream->input >= 0 && stream->pending_length)
		write_input(stream);
	if (pollers[3].revents && stream->output >= 0)
		read_output(stream, &stream->output, FRAME_STDOUT);
	if (pollers[4].revents && stream->errors >= 0)
		read_output(stream, &stream->errors, FRAME_STDERR);
}

/* End of file for the command: a terminal has a character for it, a pipe is closed. */
static void end_input(struct stream *stream)
{
	static const uint8_t end_of_transmission = 4;
	stream->input_ended = true;
	if (!stream->terminal) {
		close_fd(&stream->input);
	} else if (stream->input >= 0) {
		stream->pending[stream->pending_start] = end_of_transmission;
		stream->pending_length = 1;
	}
}

static void relay(struct stream *stream)
{
	int64_t looked = now_ms();
	while (!stream->host_gone && !stream->refused && !drained(stream)) {
		poll_once(stream);
		if (stream->input_ends && !stream->input_ended && !stream->pending_length)
			end_input(stream);
		grant(stream);
		/* Straight on to the socket: saves a round through poll. */
		if (stream->out_length && !stream->host_gone)
			write_socket(stream);
		if (now_ms() - looked >= LOOK_MS) {
			looked = now_ms();
			look_at_pid1(stream);
		}
		if (stream->hangup_deadline && now_ms() >= stream->hangup_deadline && !stream->ended)
			kill(-stream->pid, SIGKILL);
	}
}

/* The host has gone or broke the protocol: the command ends too. */
static void hang_up(struct stream *stream)
{
	host_is_gone(stream);
	while (!stream->ended && now_ms() < stream->hangup_deadline) {
		struct pollfd poller = {.fd = stream->signals, .events = POLLIN};
		poll(&poller, 1, until_ms(stream->hangup_deadline));
		look_for_end(stream);
	}
	/* Also what the command left behind in its group. */
	kill(-stream->pid, SIGKILL);
	waitpid(stream->pid, NULL, 0);
}

static void send_exit(struct stream *stream)
{
	struct builder builder = {0};
	int status = 0;
	waitpid(stream->pid, &status, 0);
	if (WIFSIGNALED(status))
		put_number(&builder, EXIT_SIGNAL, (uint64_t)WTERMSIG(status));
	else
		put_number(&builder, EXIT_CODE, (uint64_t)WEXITSTATUS(status));
	put_frame(stream, FRAME_EXIT, builder.bytes, builder.length);
	while (stream->out_length && !stream->host_gone) {
		struct pollfd poller = {.fd = stream->fd, .events = POLLOUT};
		/* As slow as the host likes, as long as it is there. */
		poll(&poller, 1, -1);
		write_socket(stream);
	}
}

void stream_run(int fd, const struct spawned *spawned, bool terminal, const struct builder *started)
{
	sigset_t child;
	struct stream *stream = calloc(1, sizeof *stream);
	if (!stream) {
		kill(-spawned->pid, SIGKILL);
		return;
	}
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	stream->fd = fd;
	stream->pid = spawned->pid;
	stream->input = spawned->input;
	stream->output = spawned->output;
	stream->errors = spawned->errors;
	stream->terminal = terminal;
	stream->last_data = now_ms();
	stream->signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	put_frame(stream, FRAME_STARTED, started->bytes, started->length);
	look_for_end(stream); /* it may have ended before the signal was blocked */
	relay(stream);
	if (stream->refused) {
		struct builder error = {0};
		put_text(&error, ERROR_CODE, "bad_request");
		put_text(&error, ERROR_MESSAGE, stream->refused);
		stream->out_start = stream->out_length = 0;
		frame_write(fd, FRAME_ERROR, error.bytes, error.length, now_ms());
		hang_up(stream);
	} else if (stream->host_gone) {
		hang_up(stream);
	} else {
		send_exit(stream);
	}
	free(stream);
}
