/* Calls from the guest to the host's listener. */
#include "hostcall.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "base.h"
#include "shared.h"

#define FEATURES "health exec shutdown sync time detach ports forward forward-frames sessions copy copy-replace probe"

static char boot_id[64];

void hello_prepare(void)
{
	if (read_file("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id) > 0)
		boot_id[strcspn(boot_id, "\n")] = 0;
}

void put_hello(struct builder *builder)
{
	if (!boot_id[0])
		hello_prepare();
	put_number(builder, HELLO_VERSION, WIRE_VERSION);
	put_text(builder, HELLO_FEATURES, FEATURES);
	put_text(builder, HELLO_AGENT, AGENT_VERSION);
	put_text(builder, HELLO_BOOT_ID, boot_id);
}

static int connect_to_host(int64_t deadline)
{
	struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = WIRE_HOST_CID, .svm_port = WIRE_HOST_PORT};
	struct sockaddr_un path = {.sun_family = AF_UNIX};
	const struct sockaddr *to = (const struct sockaddr *)&host;
	socklen_t length = sizeof host;
	if (shared && shared->on_host) {
		if (!shared->ready_path[0])
			return -1;
		memcpy(path.sun_path, shared->ready_path, sizeof path.sun_path);
		to = (const struct sockaddr *)&path;
		length = sizeof path;
	}
	int fd = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, to, length) == 0)
		return fd;
	if (errno == EINPROGRESS) {
		struct pollfd poller = {.fd = fd, .events = POLLOUT};
		int error = 0;
		socklen_t size = sizeof error;
		if (poll(&poller, 1, until_ms(deadline)) == 1 &&
		    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0)
			return fd;
	}
	close(fd);
	return -1;
}

bool host_call(uint8_t type, const struct builder *builder, int64_t deadline)
{
	int fd = connect_to_host(deadline);
	if (fd < 0)
		return false;
	struct frame reply = {0};
	bool acknowledged = frame_write(fd, type, builder->bytes, builder->length, deadline) == IO_OK &&
			    frame_read(fd, &reply, deadline) == IO_OK && reply.type == FRAME_ACK;
	frame_free(&reply);
	close(fd);
	return acknowledged;
}

void host_call_ready(void)
{
	struct builder hello = {0};
	put_hello(&hello);
	for (int pause = 20; !host_call(FRAME_READY, &hello, now_ms() + 2000); pause = pause < 1000 ? pause * 2 : 2000)
		sleep_ms(pause);
}

void host_call_ending(const char *kind, const char *message)
{
	struct builder ending = {0};
	int64_t deadline = now_ms() + 1000;
	say("ending %s", kind); /* for who reads the console later, or had no listener */
	put_text(&ending, ENDING_KIND, kind);
	if (message)
		put_text(&ending, ENDING_MESSAGE, message);
	while (!host_call(FRAME_ENDING, &ending, deadline) && until_ms(deadline) > 0)
		sleep_ms(20);
}
