/* Forks and executes a command with pipes or a terminal. The child reports through a pipe how far it came. */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "base.h"

#define PIPE_BYTES 262144

struct report {
	char code[24];
	int error;
};

struct ends {
	int child[3];
	int parent[3];
};

static void close_end(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void set_size(int fd, uint16_t rows, uint16_t cols)
{
	struct winsize size = {.ws_row = rows, .ws_col = cols};
	ioctl(fd, TIOCSWINSZ, &size);
}

static bool open_terminal(const struct plan *plan, struct ends *ends)
{
	int unlock = 0;
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (master < 0)
		return false;
	ends->parent[0] = master;
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0)
		return false;
	int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return false;
	ends->child[0] = slave;
	/* Group 5 is tty everywhere; the mode is what grantpt would set. */
	if (plan->account.uid != geteuid() && (fchown(slave, plan->account.uid, 5) < 0 || fchmod(slave, 0620) < 0))
		return false;
	set_size(master, plan->rows ? plan->rows : 24, plan->cols ? plan->cols : 80);
	ends->parent[1] = fcntl(master, F_DUPFD_CLOEXEC, 3);
	ends->child[1] = fcntl(slave, F_DUPFD_CLOEXEC, 3);
	ends->child[2] = fcntl(slave, F_DUPFD_CLOEXEC, 3);
	return ends->parent[1] >= 0 && ends->child[1] >= 0 && ends->child[2] >= 0;
}

static bool open_pipe(int *reader, int *writer, int *ours)
{
	int pair[2];
	if (pipe2(pair, O_CLOEXEC) < 0)
		return false;
	*reader = pair[0];
	*writer = pair[1];
	fcntl(pair[0], F_SETPIPE_SZ, PIPE_BYTES); /* a bigger pipe means fewer switches; refused is fine */
	return fcntl(*ours, F_SETFL, O_NONBLOCK) == 0;
}

static bool open_pipes(const struct plan *plan, struct ends *ends)
{
	if (plan->detached) {
		for (int i = 0; i < 3; i++)
			if ((ends->child[i] = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
				return false;
		return true;
	}
	if (!plan->wants_stdin)
		ends->child[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	else if (!open_pipe(&ends->child[0], &ends->parent[0], &ends->parent[0]))
		return false;
	return ends->child[0] >= 0 && open_pipe(&ends->parent[1], &ends->child[1], &ends->parent[1]) &&
	       open_pipe(&ends->parent[2], &ends->child[2], &ends->parent[2]);
}

static void give_up(int reports, const char *code) __attribute__((noreturn));

static void give_up(int reports, const char *code)
{
	struct report report = {.error = errno};
	format_text(report.code, sizeof report.code, "%s", code);
	ssize_t ignored = write(reports, &report, sizeof report);
	(void)ignored;
	_exit(127);
}

static const char *path_of(char **env)
{
	for (; *env; env++)
		if (!strncmp(*env, "PATH=", 5))
			return *env + 5;
	return "";
}

/* execve along PATH. Returns the wire's code, errno saying why. */
static const char *execute(const struct plan *plan)
{
	char candidate[4096];
	const char *name = plan->argv[0];
	int worst = ENOENT;
	if (strchr(name, '/')) {
		execve(name, plan->argv, plan->env);
		return errno == ENOENT || errno == ENOTDIR ? "not_found" : "not_executable";
	}
	for (const char *at = path_of(plan->env); *name && *at;) {
		size_t length = strcspn(at, ":");
		/* An empty entry would mean the working directory; docker ignores it, and so does this. */
		if (length && length < sizeof candidate - 2 &&
		    format_text(candidate, sizeof candidate, "%.*s/%s", (int)length, at, name)) {
			execve(candidate, plan->argv, plan->env);
			struct stat status;
			bool folder = stat(candidate, &status) == 0 && S_ISDIR(status.st_mode);
			if (!folder && errno != ENOENT && errno != ENOTDIR)
				worst = errno;
		}
		at += length + (at[length] == ':');
	}
	errno = worst;
	return worst == ENOENT ? "not_found" : "not_executable";
}

static void become(const struct plan *plan, int reports)
{
	const struct account *account = &plan->account;
	/* Not needed, and for tests not allowed, when nothing changes. */
	if (geteuid() == 0 && setgroups((size_t)account->group_count, account->groups) < 0)
		give_up(reports, "failed");
	if (setgid(account->gid) < 0 || setuid(account->uid) < 0)
		give_up(reports, "failed");
	if (plan->cwd) {
		if (chdir(plan->cwd) < 0)
			give_up(reports, "no_cwd");
	} else if (chdir(account->home) < 0 && chdir("/") < 0) {
		give_up(reports, "no_cwd");
	}
}

/* All that the server and a session's keeper ignore. Their handlers, were there any, would end with exec. */
static const int ignored_signals[] = {SIGPIPE, SIGHUP, SIGTERM};

/* May run in its parent's memory: leaves there nothing but errno. */
static void child_run(const struct plan *plan, const struct ends *ends, int reports) __attribute__((noreturn, noinline));

static void child_run(const struct plan *plan, const struct ends *ends, int reports)
{
	sigset_t none;
	for (size_t i = 0; i < sizeof ignored_signals / sizeof *ignored_signals; i++)
		signal(ignored_signals[i], SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (plan->terminal && !plan->detached && ioctl(ends->child[0], TIOCSCTTY, 0) < 0)
		give_up(reports, "failed");
	for (int target = 0; target < 3; target++)
		if (dup2(ends->child[target], target) < 0)
			give_up(reports, "failed");
	umask(022);
	write_file("/proc/self/oom_score_adj", "0");
	become(plan, reports);
	give_up(reports, execute(plan));
}

const char *spawn(const struct plan *plan, struct spawned *spawned, int *error)
{
	struct ends ends = {.child = {-1, -1, -1}, .parent = {-1, -1, -1}};
	struct report report = {.code = "failed"};
	int reports[2] = {-1, -1};
	pid_t child = -1;
	bool ready = pipe2(reports, O_CLOEXEC) == 0 && (plan->terminal && !plan->detached ? open_terminal(plan, &ends) : open_pipes(plan, &ends));
	/* vfork spares the copy of the page tables, and the faults after it: a third of what a start costs. Not
	 * for another user's command, which would hold our memory as that user until it is executed. */
	if (ready)
		child = plan->account.uid == geteuid() ? vfork() : fork();
	if (child == 0)
		child_run(plan, &ends, reports[1]);
	report.error = errno;
	close_end(&reports[1]);
	bool failed = child < 0;
	if (child > 0) {
		ssize_t got;
		do
			got = read(reports[0], &report, sizeof report);
		while (got < 0 && errno == EINTR);
		failed = got != 0; /* the pipe closes by itself where the command runs */
	}
	close_end(&reports[0]);
	for (int i = 0; i < 3; i++)
		close_end(&ends.child[i]);
	if (!failed) {
		*spawned = (struct spawned){.pid = child, .input = ends.parent[0], .output = ends.parent[1], .errors = ends.parent[2]};
		return NULL;
	}
	for (int i = 0; i < 3; i++)
		close_end(&ends.parent[i]);
	/* The child of a failed start is the server's next zombie: this process is about to end. */
	static const char *const codes[] = {"not_found", "not_executable", "no_cwd"};
	*error = report.error;
	for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
		if (!strcmp(report.code, codes[i]))
			return codes[i];
	return "failed";
}
