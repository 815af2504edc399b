/* FORWARD: bytes between the host and a TCP port of the guest: on its own loopback, else on the address that the
 * host names. It needs neither a route nor a firewall's leave, and only the host can ask for it.
 *
 * Bare (ssh's ProxyCommand): the bytes as they are. What the host sends is passed on before its end is; when the
 * port ends, the connection ends. In frames (published ports): each direction ends with an empty frame and the
 * other goes on, as TCP has it and a monitor's vsock does not; a connection that ends otherwise was broken off.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"
#include "requests.h"
#include "shared.h"

#define ROOT_MS 60000 /* as EXEC: nothing listens before the root is there */
#define CONNECT_MS 10000
#define HELD_BYTES 65536
#define SSH_PORT 22

/* One direction. What was read is written before more is read: back-pressure for free. */
struct way {
	uint8_t held[WIRE_HEADER_BYTES + HELD_BYTES];
	size_t start, length;
	bool ended; /* the source says no more */
	bool deaf;  /* the target takes no more: what comes is dropped */
	/* Of frames that are read: */
	uint8_t header[WIRE_HEADER_BYTES];
	size_t have;   /* of the header */
	uint32_t left; /* of the payload */
};

struct wanted {
	uint16_t port;
	struct in_addr address; /* 0: the loopback alone */
	bool frames;
};

static bool take_wanted(const struct frame *request, struct wanted *wanted)
{
	struct fields fields = fields_of(request);
	struct field field;
	char text[INET_ADDRSTRLEN];
	uint64_t number = SSH_PORT, flags = 0;
	int more;
	*wanted = (struct wanted){0};
	while ((more = fields_next(&fields, &field)) > 0) {
		if (field.tag == FORWARD_PORT && !field_number(&field, &number))
			return false;
		if (field.tag == FORWARD_FLAGS && !field_number(&field, &flags))
			return false;
		if (field.tag == FORWARD_ADDRESS &&
		    (!field_text(&field, text, sizeof text) || inet_pton(AF_INET, text, &wanted->address) != 1))
			return false;
	}
	if (more < 0 || number < 1 || number > UINT16_MAX)
		return false;
	wanted->port = (uint16_t)number;
	wanted->frames = flags & FORWARD_FLAG_FRAMES;
	return true;
}

static int connect_to(const struct sockaddr *address, socklen_t length, int64_t deadline)
{
	int error = 0;
	socklen_t size = sizeof error;
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, address, length) == 0)
		return fd;
	if (errno == EINPROGRESS) {
		struct pollfd poller = {.fd = fd, .events = POLLOUT};
		int ready;
		do {
			ready = poll(&poller, 1, until_ms(deadline));
		} while (ready < 0 && errno == EINTR);
		if (ready == 0)
			error = ETIMEDOUT;
		else if (ready < 0 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
			error = errno;
		if (!error)
			return fd;
	} else {
		error = errno;
	}
	close(fd);
	errno = error;
	return -1;
}

/* Over IPv4, else IPv6, else at the guest's address. -1 with IPv4's errno, which every guest has. */
static int connect_to_port(const struct wanted *wanted)
{
	in_port_t port = htons(wanted->port);
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = port};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	int64_t deadline = now_ms() + CONNECT_MS;
	int one = 1;
	v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int fd = connect_to((struct sockaddr *)&v4, sizeof v4, deadline);
	int error = errno;
	if (fd < 0)
		fd = connect_to((struct sockaddr *)&v6, sizeof v6, deadline);
	if (fd < 0 && wanted->address.s_addr) {
		v4.sin_addr = wanted->address;
		fd = connect_to((struct sockaddr *)&v4, sizeof v4, deadline);
	}
	if (fd >= 0)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	errno = error;
	return fd;
}

/* False when fd is broken. */
static bool fill(struct way *way, int fd)
{
	ssize_t got = read(fd, way->held, HELD_BYTES);
	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	way->start = 0;
	way->length = (size_t)got;
	way->ended = got == 0;
	return true;
}

static bool drain(struct way *way, int fd)
{
	ssize_t sent = send_some(fd, way->held + way->start, way->length);
	if (sent < 0)
		return errno == EAGAIN || errno == EINTR;
	way->start += (size_t)sent;
	way->length -= (size_t)sent;
	return true;
}

static short wanted_of(const struct way *from, const struct way *to)
{
	return (short)((from->length || from->ended ? 0 : POLLIN) | (to->length ? POLLOUT : 0));
}

static void relay(int host, int port, struct way *in, struct way *out)
{
	bool told = false; /* the port, that the host sends no more */
	while (!out->ended || out->length) {
		/* A host that has ended is still looked at, so that one which has gone is seen. */
		struct pollfd pollers[] = {
			{.fd = host, .events = wanted_of(in, out)},
			{.fd = port, .events = wanted_of(out, in)},
		};
		for (int i = 0; i < 2; i++)
			if (!pollers[i].events && (i == 1 || in->length))
				pollers[i].fd = -1;
		if (poll(pollers, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			return;
		}
		const short gone = POLLHUP | POLLERR | POLLNVAL;
		if (pollers[0].revents & gone && in->ended && !in->length)
			return;
		if (pollers[0].events & POLLOUT && pollers[0].revents & (POLLOUT | gone) && !drain(out, host))
			return;
		if (pollers[0].events & POLLIN && pollers[0].revents & (POLLIN | gone) && !fill(in, host))
			return;
		if (pollers[1].events & POLLOUT && pollers[1].revents & (POLLOUT | gone) && !drain(in, port))
			return;
		if (pollers[1].events & POLLIN && pollers[1].revents & (POLLIN | gone) && !fill(out, port))
			return;
		if (in->ended && !in->length && !told) {
			told = true;
			shutdown(port, SHUT_WR);
		}
	}
}

/* As fill, and what was read becomes a frame; the end an empty one. */
static bool fill_frame(struct way *way, int port)
{
	ssize_t got = read(port, way->held + WIRE_HEADER_BYTES, HELD_BYTES);
	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	frame_header(way->held, FRAME_FORWARD_DATA, (uint32_t)got);
	way->start = 0;
	way->length = WIRE_HEADER_BYTES + (size_t)got;
	way->ended = got == 0;
	return true;
}

/* As fill, of the host's frames: a piece of a payload, or one on the way to it. False as well when the host has
 * gone, and when it says something else. */
static bool fill_payload(struct way *way, int host)
{
	uint8_t *into = way->left ? way->held : way->header + way->have;
	size_t room = way->left ? way->left : sizeof way->header - way->have;
	ssize_t got = read(host, into, room < HELD_BYTES ? room : HELD_BYTES);
	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	if (got == 0 || way->ended)
		return false;
	if (way->left) {
		way->left -= (uint32_t)got;
		way->start = 0;
		way->length = way->deaf ? 0 : (size_t)got;
		return true;
	}
	way->have += (size_t)got;
	if (way->have < sizeof way->header)
		return true;
	way->have = 0;
	way->left = frame_length(way->header);
	way->ended = !way->left;
	return way->header[4] == FRAME_FORWARD_DATA && way->left <= WIRE_MAX_PAYLOAD;
}

static bool finished(const struct way *way)
{
	return way->deaf || (way->ended && !way->length);
}

static void relay_frames(int host, int port, struct way *in, struct way *out)
{
	bool told = false;
	while (!finished(in) || !finished(out)) {
		/* The host is read behind its end, too: there is nothing but its going. */
		struct pollfd pollers[] = {
			{.fd = host, .events = (short)((in->length ? 0 : POLLIN) | (out->length ? POLLOUT : 0))},
			{.fd = port, .events = wanted_of(out, in)},
		};
		for (int i = 0; i < 2; i++)
			if (!pollers[i].events)
				pollers[i].fd = -1;
		if (poll(pollers, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			return;
		}
		const short gone = POLLHUP | POLLERR | POLLNVAL;
		if (pollers[0].events & POLLOUT && pollers[0].revents & (POLLOUT | gone) && !drain(out, host))
			return;
		if (pollers[0].events & POLLIN && pollers[0].revents & (POLLIN | gone) && !fill_payload(in, host))
			return;
		if (pollers[1].events & POLLOUT && pollers[1].revents & (POLLOUT | gone) && !drain(in, port)) {
			/* It closed before it was told all; what it said is still for the host. */
			in->deaf = true;
			in->length = 0;
		}
		if (pollers[1].events & POLLIN && pollers[1].revents & (POLLIN | gone) && !fill_frame(out, port))
			return;
		if (in->ended && !in->length && !told) {
			told = true;
			shutdown(port, SHUT_WR);
		}
	}
}

void request_forward(int fd, const struct frame *request)
{
	struct builder nothing = {0};
	char message[128];
	struct wanted wanted;
	if (!take_wanted(request, &wanted)) {
		reply_error(fd, "bad_request", "malformed FORWARD", 0);
		return;
	}
	if (!phase_wait(PHASE_HANDOFF, now_ms() + ROOT_MS)) {
		reply_error(fd, "busy", "the guest has no root yet", 0);
		return;
	}
	int connected = connect_to_port(&wanted);
	if (connected < 0) {
		int error = errno;
		format_text(message, sizeof message, "port %u: %s", (unsigned)wanted.port, strerror(error));
		reply_error(fd, "refused", message, error);
		return;
	}
	struct way *ways = calloc(2, sizeof *ways);
	if (!ways) {
		reply_error(fd, "failed", "no memory", ENOMEM);
	} else {
		reply_ok(fd, &nothing);
		if (wanted.frames)
			relay_frames(fd, connected, &ways[0], &ways[1]);
		else
			relay(fd, connected, &ways[0], &ways[1]);
		/* Both halves: a monitor may not pass a half on. What was sent before arrives. */
		shutdown(fd, SHUT_RDWR);
	}
	free(ways);
	close(connected);
}
