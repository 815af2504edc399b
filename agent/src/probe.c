/* PROBE: one try to reach somebody from inside this guest, for `banger net why`; NETWORK: what this guest's
 * network looks like from here.
 *
 * One socket, one attempt, a deadline of PROBE_MOST_MS; what is sent is PROBE_MOST_DATA bytes at most, of what
 * comes PROBE_MOST_ANSWER are told. The files of NETWORK are told as they are, NETWORK_MOST_TEXT bytes of each:
 * the host takes them apart. What the image has made of them (a pipe, a link to nothing) reads as empty.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/ethtool.h>
#include <linux/sockios.h>

#include "base.h"
#include "requests.h"
#include "shared.h"

#define PROBE_MOST_MS 15000
#define PROBE_MOST_DATA 512
#define PROBE_MOST_ANSWER 2048
#define NETWORK_MOST_LINKS 16
#define NETWORK_MOST_TEXT 32768
#define NETWORK_PIECE 3072
#define REPLY_MS 10000
#define BOOT_MS 10000 /* before there is a root its files say nothing, and the card may not be there */

struct probe {
	char kind[8]; /* tcp, udp, icmp */
	struct in_addr to;
	uint16_t port;
	uint16_t from; /* source port; of icmp the id. 0: any */
	uint64_t timeout_ms;
	const uint8_t *data;
	size_t length;
};

struct answer {
	int error; /* 0: connected, or answered */
	uint64_t microseconds;
	uint8_t data[PROBE_MOST_ANSWER];
	size_t length;
};

static bool take_probe(const struct frame *request, struct probe *probe)
{
	struct fields fields = fields_of(request);
	struct field field;
	char address[INET_ADDRSTRLEN] = "";
	uint64_t port = 0, from = 0;
	int more;
	*probe = (struct probe){.timeout_ms = 3000};
	while ((more = fields_next(&fields, &field)) > 0) {
		bool good = true;
		switch (field.tag) {
		case PROBE_KIND:
			good = field_text(&field, probe->kind, sizeof probe->kind);
			break;
		case PROBE_ADDRESS:
			good = field_text(&field, address, sizeof address);
			break;
		case PROBE_PORT:
			good = field_number(&field, &port) && port <= UINT16_MAX;
			break;
		case PROBE_SOURCE:
			good = field_number(&field, &from) && from <= UINT16_MAX;
			break;
		case PROBE_TIMEOUT_MS:
			good = field_number(&field, &probe->timeout_ms);
			break;
		case PROBE_DATA:
			good = field.length <= PROBE_MOST_DATA;
			probe->data = field.bytes;
			probe->length = field.length;
			break;
		default:
			break;
		}
		if (!good)
			return false;
	}
	if (more < 0 || inet_pton(AF_INET, address, &probe->to) != 1)
		return false;
	probe->port = (uint16_t)port;
	probe->from = (uint16_t)from;
	if (probe->timeout_ms > PROBE_MOST_MS)
		probe->timeout_ms = PROBE_MOST_MS;
	bool icmp = !strcmp(probe->kind, "icmp");
	return icmp || (port && (!strcmp(probe->kind, "tcp") || !strcmp(probe->kind, "udp")));
}

static uint64_t now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* 0 when fd is ready for it, else errno. */
static int wait_for(int fd, short what, int64_t deadline)
{
	struct pollfd poller = {.fd = fd, .events = what};
	int ready;
	do {
		ready = poll(&poller, 1, until_ms(deadline));
	} while (ready < 0 && errno == EINTR);
	return ready < 0 ? errno : ready ? 0 : ETIMEDOUT;
}

static int pending_error(int fd)
{
	int error = 0;
	socklen_t size = sizeof error;
	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
}

static int finish_connect(int fd, int64_t deadline)
{
	int error = wait_for(fd, POLLOUT, deadline);
	return error ? error : pending_error(fd);
}

static uint16_t checksum(const uint8_t *bytes, size_t length)
{
	uint32_t sum = 0;
	for (size_t i = 0; i + 1 < length; i += 2)
		sum += (uint32_t)(bytes[i] << 8 | bytes[i + 1]);
	if (length & 1)
		sum += (uint32_t)(bytes[length - 1] << 8);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* An echo request; its payload is 16 bytes of zeros. */
static size_t make_echo(uint8_t *packet, uint16_t id)
{
	memset(packet, 0, 24);
	packet[0] = ICMP_ECHO;
	packet[4] = (uint8_t)(id >> 8);
	packet[5] = (uint8_t)id;
	packet[7] = 1;
	uint16_t sum = checksum(packet, 24);
	packet[2] = (uint8_t)(sum >> 8);
	packet[3] = (uint8_t)sum;
	return 24;
}

/* What a raw socket reads has its IP header in front. */
static bool is_echo_reply(const uint8_t *packet, size_t length, uint16_t id)
{
	size_t head = length ? (size_t)(packet[0] & 15) * 4 : 0;
	if (head < sizeof(struct iphdr) || length < head + 8)
		return false;
	const uint8_t *icmp = packet + head;
	return icmp[0] == ICMP_ECHOREPLY && icmp[4] == id >> 8 && icmp[5] == (id & 255);
}

static int exchange(int fd, const struct probe *probe, struct answer *answer, int64_t deadline)
{
	uint8_t echo[24];
	bool icmp = probe->kind[0] == 'i';
	const uint8_t *data = icmp ? echo : probe->data;
	size_t length = icmp ? make_echo(echo, probe->from) : probe->length;
	if (send(fd, data, length, MSG_NOSIGNAL) < 0)
		return errno;
	for (;;) {
		int error = wait_for(fd, POLLIN, deadline);
		if (error)
			return error;
		ssize_t got = recv(fd, answer->data, sizeof answer->data, 0);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (got < 0)
			return errno;
		if (icmp && !is_echo_reply(answer->data, (size_t)got, probe->from))
			continue;
		answer->length = icmp ? 0 : (size_t)got;
		return 0;
	}
}

static int try_it(int fd, const struct probe *probe, struct answer *answer)
{
	struct sockaddr_in local = {.sin_family = AF_INET, .sin_port = htons(probe->from)};
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(probe->port), .sin_addr = probe->to};
	int64_t deadline = now_ms() + (int64_t)probe->timeout_ms;
	bool icmp = probe->kind[0] == 'i';
	int one = 1, error = 0;
	if (icmp)
		to.sin_port = 0;
	else if (probe->from && bind(fd, (struct sockaddr *)&local, sizeof local) < 0)
		return errno;
	/* Unreachable is heard at once, also of what a firewall on the way says. */
	if (probe->kind[0] != 't')
		setsockopt(fd, IPPROTO_IP, IP_RECVERR, &one, sizeof one);
	uint64_t began = now_us();
	if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
		error = errno == EINPROGRESS ? finish_connect(fd, deadline) : errno;
	if (!error && probe->kind[0] != 't')
		error = exchange(fd, probe, answer, deadline);
	answer->microseconds = now_us() - began;
	return error;
}

void request_probe(int fd, const struct frame *request)
{
	static struct answer answer;
	struct builder builder = {0};
	struct probe probe;
	if (!take_probe(request, &probe)) {
		reply_error(fd, "bad_request", "malformed PROBE", 0);
		return;
	}
	int type = probe.kind[0] == 't' ? SOCK_STREAM : probe.kind[0] == 'u' ? SOCK_DGRAM : SOCK_RAW;
	int made = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, type == SOCK_RAW ? IPPROTO_ICMP : 0);
	if (made < 0) {
		reply_error(fd, "failed", "no socket", errno);
		return;
	}
	answer = (struct answer){0};
	answer.error = try_it(made, &probe, &answer);
	close(made);
	put_number(&builder, PROBE_ERRNO, (uint64_t)answer.error);
	put_number(&builder, PROBE_MICROSECONDS, answer.microseconds);
	if (!answer.error && answer.length)
		put_bytes(&builder, PROBE_ANSWER, answer.data, answer.length);
	reply_ok(fd, &builder);
}

static bool tell(int fd, uint8_t type, const struct builder *builder)
{
	return frame_write(fd, type, builder->bytes, builder->length, now_ms() + REPLY_MS) == IO_OK;
}

static void put_ipv4(struct builder *builder, uint8_t tag, const struct sockaddr *address)
{
	char text[INET_ADDRSTRLEN];
	struct sockaddr_in ipv4;
	memcpy(&ipv4, address, sizeof ipv4);
	if (ipv4.sin_family == AF_INET && inet_ntop(AF_INET, &ipv4.sin_addr, text, sizeof text))
		put_text(builder, tag, text);
}

/* The flags, with IFF_RUNNING as the driver has it: the kernel's own follows a change up to a second later. */
static unsigned flags_of(int asking, const struct ifreq *request)
{
	struct ethtool_value carrier = {.cmd = ETHTOOL_GLINK};
	struct ifreq question;
	memset(&question, 0, sizeof question);
	memcpy(question.ifr_name, request->ifr_name, sizeof question.ifr_name);
	question.ifr_data = (void *)&carrier;
	unsigned flags = (uint16_t)request->ifr_flags;
	if (ioctl(asking, SIOCETHTOOL, &question) < 0)
		return flags; /* a driver without an answer */
	return carrier.data ? flags | IFF_RUNNING : flags & ~(unsigned)IFF_RUNNING;
}

static bool tell_link(int fd, int asking, const char *name)
{
	struct builder builder = {0};
	struct ifreq request;
	memset(&request, 0, sizeof request);
	memcpy(request.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	if (ioctl(asking, SIOCGIFFLAGS, &request) < 0)
		return true; /* gone meanwhile */
	put_text(&builder, LINK_NAME, request.ifr_name);
	put_number(&builder, LINK_FLAGS, flags_of(asking, &request));
	if (ioctl(asking, SIOCGIFADDR, &request) == 0)
		put_ipv4(&builder, LINK_ADDRESS, &request.ifr_addr);
	if (ioctl(asking, SIOCGIFNETMASK, &request) == 0)
		put_ipv4(&builder, LINK_NETMASK, &request.ifr_netmask);
	return tell(fd, FRAME_NETWORK_LINK, &builder);
}

static bool tell_links(int fd)
{
	int asking = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), told = 0;
	bool good = true;
	struct if_nameindex *list = asking < 0 ? NULL : if_nameindex();
	for (struct if_nameindex *link = list; link && link->if_name && good && told < NETWORK_MOST_LINKS; link++, told++)
		good = tell_link(fd, asking, link->if_name);
	if (list)
		if_freenameindex(list);
	if (asking >= 0)
		close(asking);
	return good;
}

static bool tell_text(int fd, const char *kind, const char *path)
{
	static char text[NETWORK_MOST_TEXT + 1];
	ssize_t length = read_file(path, text, sizeof text);
	for (ssize_t at = 0; at < length; at += NETWORK_PIECE) {
		struct builder builder = {0};
		size_t piece = (size_t)(length - at < NETWORK_PIECE ? length - at : NETWORK_PIECE);
		put_text(&builder, TEXT_KIND, kind);
		put_bytes(&builder, TEXT_BYTES, text + at, piece);
		if (!tell(fd, FRAME_NETWORK_TEXT, &builder))
			return false;
	}
	return true;
}

void request_network(int fd, const struct frame *request)
{
	struct builder builder = {0};
	(void)request;
	phase_wait(PHASE_HANDOFF, now_ms() + BOOT_MS);
	if (tell_links(fd) && tell_text(fd, "routes", "/proc/net/route") && tell_text(fd, "resolver", "/etc/resolv.conf") &&
	    tell_text(fd, "hosts", "/etc/hosts"))
		reply_ok(fd, &builder);
}
