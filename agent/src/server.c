/* Accepts, checks who calls, forks. A connection's child can hang, crash or be slow by itself.
 *
 * The server ignores TERM, and its argv[0] begins with '@': systemd's last killing spree passes it over.
 * Only the host (CID 2) is served: no process in the guest may ask the agent for anything.
 */
#include "server.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "base.h"
#include "frame.h"
#include "hostcall.h"
#include "requests.h"
#include "shared.h"

#define MAX_CONNECTIONS 512
#define BACKLOG 1024

static int listen_on(const struct sockaddr *address, socklen_t length)
{
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	if (bind(fd, address, length) < 0 || listen(fd, BACKLOG) < 0) {
		int why = errno;
		close(fd);
		errno = why;
		return -1;
	}
	return fd;
}

/* What a monitor does before the bytes reach the agent: one line in, one line out. */
static bool greet_as_monitor(int fd)
{
	char line[32];
	int64_t deadline = now_ms() + 5000;
	for (size_t length = 0; length < sizeof line; length++) {
		if (read_exactly(fd, line + length, 1, deadline) != IO_OK)
			return false;
		if (line[length] == '\n')
			return write_exactly(fd, "OK 1\n", 5, deadline) == IO_OK;
	}
	return false;
}

static void connection_run(int fd, int listener, int signals, bool refuse) __attribute__((noreturn));

static void connection_run(int fd, int listener, int signals, bool refuse)
{
	sigset_t none;
	close(listener);
	close(signals);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (!shared->on_host || greet_as_monitor(fd)) {
		if (refuse)
			requests_refuse(fd);
		else
			requests_serve(fd);
	}
	_exit(0);
}

static bool is_host(const struct sockaddr_storage *peer)
{
	if (shared->on_host)
		return true;
	const struct sockaddr_vm *address = (const struct sockaddr_vm *)peer;
	return address->svm_family == AF_VSOCK && address->svm_cid == WIRE_HOST_CID;
}

static void accept_one(int listener, int signals, int *connections)
{
	struct sockaddr_storage peer;
	memset(&peer, 0, sizeof peer);
	socklen_t length = sizeof peer;
	int fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		/* Out of memory or descriptors: wait for some to come back rather than spin. */
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			sleep_ms(20);
		return;
	}
	if (is_host(&peer)) {
		pid_t child = agent_fork();
		if (child == 0)
			connection_run(fd, listener, signals, *connections >= MAX_CONNECTIONS);
		if (child > 0)
			++*connections;
		else
			say("cannot serve a connection: %s", strerror(errno));
	}
	close(fd);
}

static pid_t start_ready(int listener)
{
	pid_t server = getpid(), child = agent_fork();
	if (child == 0) {
		/* A test's server may be killed, or has been by now; nobody would ever end this one then. */
		if (shared->on_host && (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != server))
			_exit(0);
		close(listener);
		host_call_ready();
		_exit(0);
	}
	return child;
}

/* What our starter ignored: commands get the default for it, and for what we ignore (spawn.c). */
static void heed_signals(void)
{
	for (int number = 1; number < NSIG; number++) {
		struct sigaction action;
		if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
			signal(number, SIG_DFL);
	}
}

static void serve(int listener, int handoff) __attribute__((noreturn));

static void serve(int listener, int handoff)
{
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	heed_signals();
	hello_prepare();
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	if (!shared->on_host)
		signal(SIGTERM, SIG_IGN);
	pid_t ready = start_ready(listener);
	sigprocmask(SIG_BLOCK, &child, NULL);
	int signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	int connections = 0;
	for (;;) {
		struct pollfd pollers[] = {
			{.fd = signals, .events = POLLIN},
			{.fd = handoff, .events = POLLIN},
			/* Past the bound by some, connections wait in the backlog. */
			{.fd = connections < MAX_CONNECTIONS + 64 ? listener : -1, .events = POLLIN},
		};
		if (poll(pollers, 3, -1) < 0)
			continue;
		if (pollers[0].revents) {
			struct signalfd_siginfo ignored;
			while (read(signals, &ignored, sizeof ignored) > 0)
				;
			for (pid_t gone; (gone = waitpid(-1, NULL, WNOHANG)) > 0;)
				if (gone != ready && connections > 0)
					connections--;
		}
		if (pollers[1].revents) {
			close(handoff);
			handoff = -1;
			phase_reach(PHASE_INIT);
		}
		if (pollers[2].revents)
			accept_one(listener, signals, &connections);
	}
}

void server_run(char **argv, int handoff)
{
	argv[0][0] = '@';
	prctl(PR_SET_NAME, "banger-agent");
	setsid();
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int target = 0; null >= 0 && target < 3; target++)
		dup2(null, target);
	write_file("/proc/self/oom_score_adj", "-1000");
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = WIRE_AGENT_PORT};
	int listener = listen_on((struct sockaddr *)&address, sizeof address);
	if (listener < 0) {
		say("cannot listen on vsock port %d: %s", WIRE_AGENT_PORT, strerror(errno));
		_exit(1);
	}
	serve(listener, handoff);
}

void server_run_unix(const char *path, const char *ready)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	log_to_stderr();
	shared_create();
	shared->on_host = true;
	format_text(shared->init, sizeof shared->init, "none");
	phase_reach(PHASE_INIT);
	if (!format_text(address.sun_path, sizeof address.sun_path, "%s", path) ||
	    !format_text(shared->state, sizeof shared->state, "%s.state", path) ||
	    !format_text(shared->ready_path, sizeof shared->ready_path, "%s", ready ? ready : "")) {
		say("a socket's path is too long");
		_exit(2);
	}
	int listener = listen_on((struct sockaddr *)&address, sizeof address);
	if (listener < 0) {
		say("cannot listen on %s: %s", path, strerror(errno));
		_exit(1);
	}
	serve(listener, -1);
}
