/* For bench/exec.py, vsock port 5001: every connection gets one byte, the status of /usr/bin/true run for it.
 * Port 5002: one byte at once. One process, no pipes, no account, no words read: the least that can be done. */
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static int listen_on(unsigned port)
{
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
	int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 16) < 0) {
		perror("spawn_vsock");
		_exit(1);
	}
	return listener;
}

static char run_true(void)
{
	static char *const argv[] = {"true", NULL}, *const env[] = {NULL};
	int status = 0;
	pid_t child = vfork();
	if (child == 0) {
		execve("/usr/bin/true", argv, env);
		_exit(127);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return 126;
	return (char)WEXITSTATUS(status);
}

int main(void)
{
	struct pollfd listeners[] = {{listen_on(5001), POLLIN, 0}, {listen_on(5002), POLLIN, 0}};
	if (fork())
		return 0;
	while (poll(listeners, 2, -1) > 0) {
		for (int i = 0; i < 2; i++) {
			if (!listeners[i].revents)
				continue;
			int fd = accept4(listeners[i].fd, NULL, NULL, SOCK_CLOEXEC);
			char reply = i == 0 ? run_true() : 0;
			if (fd >= 0 && write(fd, &reply, 1) == 1)
				shutdown(fd, SHUT_WR);
			close(fd);
		}
	}
	return 1;
}
