/* Pid 1 of the initramfs: brings up what the image needs, then becomes the image's init, or stays as init.
 *
 * The server is forked as soon as its modules are loaded, shares pid 1's root until that is the image's
 * (shared.h), and lives on whoever is pid 1 then. A failure before the handover ends the machine with one
 * line on the console and ENDING `failed` to the host.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"
#include "ending.h"
#include "files.h"
#include "modprobe.h"
#include "modules.h"
#include "mounts.h"
#include "network.h"
#include "server.h"
#include "shared.h"
#include "sshd.h"
#include "stores.h"

static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd < 0)
		return;
	for (int target = 0; target < 3; target++)
		if (fd != target)
			dup2(fd, target);
	if (fd > 2)
		close(fd);
}

/* Programs that are called init in some image but are none, or one for containers. */
static bool is_real_init(const char *path, char *resolved)
{
	static const char *const none[] = {"busybox", "tini", "tini-static", "dumb-init", "docker-init", "catatonit"};
	if (!realpath(path, resolved) || access(resolved, X_OK) < 0)
		return false;
	const char *name = strrchr(resolved, '/') + 1;
	for (size_t i = 0; i < sizeof none / sizeof *none; i++)
		if (!strcmp(name, none[i]))
			return false;
	struct stat init, busybox;
	if (stat(resolved, &init) < 0 || !S_ISREG(init.st_mode))
		return false;
	/* busybox under another name: a hard link */
	return !(stat("/bin/busybox", &busybox) == 0 && busybox.st_dev == init.st_dev && busybox.st_ino == init.st_ino);
}

/* The init to run, or NULL for the agent itself. *resolved: where its links lead. */
static const char *choose_init(char *resolved)
{
	static const char *const places[] = {"/sbin/init", "/usr/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/sbin/openrc-init", "/sbin/runit-init"};
	if (config.init[0] == '/') {
		if (!realpath(config.init, resolved))
			strcpy(resolved, config.init); /* both hold 256 bytes; its exec will say why not */
		return config.init;
	}
	if (!strcmp(config.init, "auto"))
		for (size_t i = 0; i < sizeof places / sizeof *places; i++)
			if (is_real_init(places[i], resolved))
				return places[i];
	return NULL;
}

static void stay_as_init(void) __attribute__((noreturn));

static void stay_as_init(void)
{
	static const int ending[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGPWR, SIGNAL_POWEROFF, SIGNAL_REBOOT};
	sigset_t waited;
	sigemptyset(&waited);
	sigaddset(&waited, SIGCHLD);
	for (size_t i = 0; i < sizeof ending / sizeof *ending; i++)
		sigaddset(&waited, ending[i]);
	sigprocmask(SIG_SETMASK, &waited, NULL);
	reboot(RB_DISABLE_CAD); /* Ctrl-Alt-Del is SIGINT to us, not a reset behind our back */
	mkdir("/dev/shm", 01777);
	mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	phase_reach(PHASE_INIT);
	for (;;) {
		/* As busybox and sysvinit number them: USR1 halts, USR2 powers off, TERM and INT reboot. */
		switch (sigwaitinfo(&waited, NULL)) {
		case SIGUSR1:
			ending_as_init("halt");
		case SIGUSR2:
		case SIGPWR:
		case SIGNAL_POWEROFF:
			ending_as_init("poweroff");
		case SIGTERM:
		case SIGINT:
		case SIGNAL_REBOOT:
			ending_as_init("reboot");
		default: /* SIGCHLD: ours and orphans alike */
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
		}
	}
}

static void hand_over(int handoff)
{
	char resolved[4096];
	const char *path = choose_init(resolved);
	shared->agent_is_init = !path;
	format_text(shared->init, sizeof shared->init, "%s", path ? resolved : "agent");
	phase_reach(PHASE_HANDOFF);
	/* From here on pid 1's root is its own: a chdir of the image's init is not the server's. */
	unshare(CLONE_FS);
	if (path) {
		char *argv[] = {(char *)(uintptr_t)path, NULL};
		static char *env[] = {"HOME=/", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
		execve(path, argv, env);
		say("cannot run %s: %s; the agent stays as init", path, strerror(errno));
		shared->agent_is_init = true;
		format_text(shared->init, sizeof shared->init, "agent");
	}
	close(handoff);
	stay_as_init();
}

void init_run(char **argv)
{
	const char *why;
	int wrong, old_root, handoff[2];
	char message[64];
	umask(022);
	mount_basics();
	open_console();
	shared_create();
	modules_load("/banger/modules");
	if ((wrong = config_read(&config, "/banger/config"))) {
		format_text(message, sizeof message, wrong < 0 ? "cannot read /banger/config" : "/banger/config is wrong in line %d", wrong);
		fatal(message);
	}
	if (config.hostname[0])
		sethostname(config.hostname, strlen(config.hostname));
	if (pipe2(handoff, O_CLOEXEC) < 0)
		fatal("cannot make a pipe");
	pid_t server = agent_fork();
	if (server == 0) {
		close(handoff[1]);
		server_run(argv, handoff[0]);
	}
	if (server < 0)
		fatal("cannot start the server");
	close(handoff[0]);
	if ((why = mount_root(&config)) || (why = switch_root(&old_root)))
		fatal(why);
	network_up(&config);
	files_copy(old_root);
	if (sshd_offer_key(SSHD_CONFIG, SSHD_HOST_KEY) < 0)
		say("cannot write %s: %s", SSHD_CONFIG, strerror(errno));
	initramfs_delete(old_root);
	stores_mount(&config);
	if ((why = mount_work(&config)))
		fatal(why);
	if (config.workdir[0])
		make_folders(config.workdir);
	ending_prepare();
	modprobe_offer();
	hand_over(handoff[1]);
	abort();
}
