/* SHUTDOWN: hands the wish to whoever is pid 1, in the way that one understands. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"
#include "ending.h"
#include "requests.h"
#include "session.h"
#include "shared.h"

#define INIT_MS 60000   /* for a booting init to be there and to listen to signals */
#define PROGRAM_MS 10000 /* for `poweroff` and the like, which only pass the wish on */

/* pid 1 drops a signal it neither blocks nor handles (it is unkillable): wait until it does either. */
static bool pid1_listens(int signal_number)
{
	char status[4096];
	static const char *const keys[] = {"SigBlk:", "SigCgt:"};
	if (read_file("/proc/1/status", status, sizeof status) < 0)
		return false;
	for (int i = 0; i < 2; i++) {
		char *line = strstr(status, keys[i]);
		if (line && strtoull(line + strlen(keys[i]), NULL, 16) >> (signal_number - 1) & 1)
			return true;
	}
	return false;
}

static void signal_pid1(int signal_number)
{
	int64_t deadline = now_ms() + INIT_MS;
	phase_wait(PHASE_INIT, deadline);
	/* The agent as init blocks them before that phase, and /proc does not show what sigwaitinfo waits for. */
	while (!shared->agent_is_init && !pid1_listens(signal_number) && now_ms() < deadline)
		sleep_ms(20);
	if (kill(1, signal_number) < 0)
		say("cannot signal pid 1: %s", strerror(errno));
}

static bool understands_signals(void)
{
	const char *name = strrchr(shared->init, '/');
	return shared->agent_is_init || (name && !strcmp(name, "/systemd")) || access("/run/systemd/system", F_OK) == 0;
}

static int run(char *const *argv)
{
	static char *env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
	int status;
	pid_t child = fork();
	if (child == 0) {
		signal(SIGPIPE, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
		signal(SIGHUP, SIG_DFL);
		execve(argv[0], argv, env);
		_exit(127);
	}
	if (child < 0)
		return -1;
	for (int64_t deadline = now_ms() + PROGRAM_MS; now_ms() < deadline; sleep_ms(10))
		if (waitpid(child, &status, WNOHANG) == child)
			return status;
	return 0; /* some only return when the machine ends */
}

/* Each init's own door first, then the names that all but the barest images have. */
static bool run_program(bool reboot)
{
	static char *const poweroff[][6] = {
		{"/sbin/openrc-shutdown", "--poweroff", "now"},
		{"/sbin/runit-init", "0"},
		{"/usr/bin/runit-init", "0"},
		{"/sbin/shutdown", "-h", "-P", "now"},
		{"/sbin/poweroff"},
		{"/usr/sbin/poweroff"},
	};
	static char *const restart[][6] = {
		{"/sbin/openrc-shutdown", "--reboot", "now"},
		{"/sbin/runit-init", "6"},
		{"/usr/bin/runit-init", "6"},
		{"/sbin/shutdown", "-r", "now"},
		{"/sbin/reboot"},
		{"/usr/sbin/reboot"},
	};
	for (size_t i = 0; i < sizeof poweroff / sizeof *poweroff; i++) {
		char *const *argv = reboot ? restart[i] : poweroff[i];
		if (access(argv[0], X_OK) == 0 && run(argv) == 0)
			return true;
	}
	return false;
}

void request_shutdown(int fd, const struct frame *request)
{
	struct fields fields = fields_of(request);
	struct field field;
	struct builder empty = {0};
	char kind[16] = "";
	int more;
	while ((more = fields_next(&fields, &field)) > 0)
		if (field.tag == SHUTDOWN_KIND && !field_text(&field, kind, sizeof kind))
			kind[0] = 0;
	bool reboot = !strcmp(kind, "reboot");
	if (more < 0 || (!reboot && strcmp(kind, "poweroff") != 0)) {
		reply_error(fd, "bad_request", "malformed SHUTDOWN", 0);
		return;
	}
	if (shared->on_host) {
		reply_error(fd, "unsupported", "not a guest", 0);
		return;
	}
	if (!phase_wait(PHASE_INIT, now_ms() + INIT_MS)) {
		reply_error(fd, "busy", "the guest has no init yet", 0);
		return;
	}
	if (understands_signals()) {
		/* The promise first: from here on nothing but pid 1's own start can be waited for. */
		phase_reach(PHASE_SHUTDOWN);
		reply_ok(fd, &empty);
		sessions_hang_up(); /* init does not know them, and could not unmount what they use */
		signal_pid1(reboot ? SIGNAL_REBOOT : SIGNAL_POWEROFF);
	} else if (run_program(reboot)) {
		phase_reach(PHASE_SHUTDOWN);
		sessions_hang_up();
		reply_ok(fd, &empty);
	} else {
		reply_error(fd, "failed", "the image has no program to shut down with", 0);
	}
}
