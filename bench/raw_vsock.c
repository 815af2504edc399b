/* Raw bytes on vsock port 5000 (with an argument: on TCP port 5000), for bench/copy.py and ports.py: 'r' and a count are answered with that many bytes, 'w' and a
 * count take that many and are answered with one. */
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static char buffer[262144];

static void serve(int fd)
{
	char kind = 0;
	uint64_t left = 0;
	if (read(fd, &kind, 1) != 1 || read(fd, &left, sizeof left) != sizeof left)
		return;
	while (left) {
		size_t piece = left < sizeof buffer ? (size_t)left : sizeof buffer;
		ssize_t moved = kind == 'r' ? write(fd, buffer, piece) : read(fd, buffer, piece);
		if (moved <= 0)
			return;
		left -= (uint64_t)moved;
	}
	if (kind == 'w' && write(fd, &kind, 1) != 1)
		return;
}

int main(int argc, char **argv)
{
	struct sockaddr_vm vsock = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 5000};
	struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_port = htons(5000)};
	const struct sockaddr *address = argc > 1 ? (struct sockaddr *)&tcp : (struct sockaddr *)&vsock;
	socklen_t size = argc > 1 ? sizeof tcp : sizeof vsock;
	int listener = socket(address->sa_family, SOCK_STREAM, 0);
	(void)argv;
	if (bind(listener, address, size) < 0 || listen(listener, 4) < 0) {
		perror("raw_vsock");
		return 1;
	}
	if (fork())
		return 0;
	for (int fd; (fd = accept(listener, NULL, NULL)) >= 0; close(fd))
		serve(fd);
	return 1;
}
