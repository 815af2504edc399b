/* FORWARD: bytes between the host and a TCP port on the guest's own loopback, as they are.
 *
 * This is what ssh's ProxyCommand goes through: it needs neither an address nor a route, and only the host can
 * ask for it. What the host sends is passed on before its end is; when the port ends, the connection ends.
 */
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
	uint8_t held[HELD_BYTES];
	size_t start, length;
	bool ended; /* the source says no more */
};

static bool take_port(const struct frame *request, uint16_t *port)
{
	struct fields fields = fields_of(request);
	struct field field;
	uint64_t number = SSH_PORT;
	int more;
	while ((more = fields_next(&fields, &field)) > 0)
		if (field.tag == FORWARD_PORT && !field_number(&field, &number))
			return false;
	if (more < 0 || number < 1 || number > UINT16_MAX)
		return false;
	*port = (uint16_t)number;
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

/* Over IPv4, else IPv6. -1 with IPv4's errno, which every guest has. */
static int connect_to_port(uint16_t port)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	int64_t deadline = now_ms() + CONNECT_MS;
	int one = 1;
	v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int fd = connect_to((struct sockaddr *)&v4, sizeof v4, deadline);
	int error = errno;
	if (fd < 0)
		fd = connect_to((struct sockaddr *)&v6, sizeof v6, deadline);
	if (fd >= 0)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	errno = error;
	return fd;
}

/* False when fd is broken. */
static bool fill(struct way *way, int fd)
{
	ssize_t got = read(fd, way->held, sizeof way->held);
	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	way->start = 0;
	way->length = (size_t)got;
	way->ended = got == 0;
	return true;
}

static bool drain(struct way *way, int fd)
{
	ssize_t sent = send(fd, way->held + way->start, way->length, MSG_NOSIGNAL);
	if (sent < 0)
		return errno == EAGAIN || errno == EINTR;
	way->start += (size_t)sent;
	way->length -= (size_t)sent;
	return true;
}

static short wanted(const struct way *from, const struct way *to)
{
	return (short)((from->length || from->ended ? 0 : POLLIN) | (to->length ? POLLOUT : 0));
}

static void relay(int host, int port, struct way *in, struct way *out)
{
	bool told = false; /* the port, that the host sends no more */
	while (!out->ended || out->length) {
		/* A host that has ended is still looked at, so that one which has gone is seen. */
		struct pollfd pollers[] = {
			{.fd = host, .events = wanted(in, out)},
			{.fd = port, .events = wanted(out, in)},
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

void request_forward(int fd, const struct frame *request)
{
	struct builder nothing = {0};
	char message[128];
	uint16_t port;
	if (!take_port(request, &port)) {
		reply_error(fd, "bad_request", "malformed FORWARD", 0);
		return;
	}
	if (!phase_wait(PHASE_HANDOFF, now_ms() + ROOT_MS)) {
		reply_error(fd, "busy", "the guest has no root yet", 0);
		return;
	}
	int connected = connect_to_port(port);
	if (connected < 0) {
		int error = errno;
		format_text(message, sizeof message, "port %u: %s", (unsigned)port, strerror(error));
		reply_error(fd, "refused", message, error);
		return;
	}
	struct way *ways = calloc(2, sizeof *ways);
	if (!ways) {
		reply_error(fd, "failed", "no memory", ENOMEM);
	} else {
		reply_ok(fd, &nothing);
		relay(fd, connected, &ways[0], &ways[1]);
		/* Both halves: a monitor may not pass a half on. What was sent before arrives. */
		shutdown(fd, SHUT_RDWR);
	}
	free(ways);
	close(connected);
}
