/* The kernel's modules, and places for container stores, in an image that knows of neither.
 *
 * Modules: one read-only disk for all VMs of a kernel, below an overlay, so that a guest can add its own (dkms,
 * linux-headers). An image that has modules of this release keeps them and sees none of ours.
 * Stores: an overlay cannot be the upper layer of another, so container engines need another file system. The
 * overlay's disk is a plain ext4: folders of it are mounted over the places where engines keep theirs, once
 * with a copy of what the image has there. A crash in that copy repeats it at the next start.
 */
#include "stores.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"
#include "mounts.h"

#define MODULES_DISK "/run/banger/modules"

static bool is_folder(const char *path)
{
	struct stat there;
	return lstat(path, &there) == 0 && S_ISDIR(there.st_mode);
}

static bool has_content(const char *path)
{
	DIR *entries = opendir(path);
	bool found = false;
	if (!entries)
		return false;
	for (struct dirent *entry; !found && (entry = readdir(entries));)
		found = strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
	closedir(entries);
	return found;
}

static void mount_modules(const struct config *config)
{
	struct utsname kernel;
	char place[160], own[180], upper[180], work[180], options[600];
	const char *why;
	if (!config->modules[0] || uname(&kernel) < 0)
		return;
	if (!format_text(place, sizeof place, "/lib/modules/%s", kernel.release) ||
	    !format_text(own, sizeof own, "%s/kernel", place) || access(own, F_OK) == 0)
		return; /* the image's own */
	make_folders(place);
	if ((why = mount_disk(config->modules, MODULES_DISK, MS_RDONLY | MS_NODEV | MS_NOSUID))) {
		say("%s", why);
		return;
	}
	/* What a guest adds stays: on the overlay's disk, or, where the root is a plain file system, at its own place. */
	bool fits;
	if (config->overlay_root)
		fits = format_text(upper, sizeof upper, OVERLAY_DISK "/modules/%s/upper", kernel.release) &&
		       format_text(work, sizeof work, OVERLAY_DISK "/modules/%s/work", kernel.release);
	else
		fits = format_text(upper, sizeof upper, "%s", place) &&
		       format_text(work, sizeof work, "/lib/modules/.banger-%s", kernel.release);
	if (fits && format_text(options, sizeof options, "lowerdir=" MODULES_DISK ",upperdir=%s,workdir=%s", upper, work)) {
		make_folders(upper);
		make_folders(work);
		if (mount("overlay", place, "overlay", MS_NODEV | MS_NOSUID, options) == 0)
			return;
		say("cannot mount modules writable: %s", strerror(errno));
	}
	if (mount(MODULES_DISK, place, NULL, MS_BIND, NULL) < 0)
		say("cannot mount modules at %s: %s", place, strerror(errno));
}

/* With the image's own program: it knows of extended attributes, holes and hard links. */
static bool copy_content(const char *from, const char *to)
{
	char source[80];
	int status;
	if (!format_text(source, sizeof source, "%s/.", from))
		return false;
	pid_t child = fork();
	if (child == 0) {
		char *argv[] = {(char *)(uintptr_t) "cp", (char *)(uintptr_t) "-a", source, (char *)(uintptr_t)to, NULL};
		char *env[] = {NULL};
		execve("/bin/cp", argv, env);
		execve("/usr/bin/cp", argv, env);
		_exit(127);
	}
	while (child > 0 && waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return false;
	return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void mount_store(const char *place)
{
	char folder[80], mark[96];
	struct stat there;
	if (!format_text(folder, sizeof folder, OVERLAY_DISK "/stores%s", place) || !format_text(mark, sizeof mark, "%s.whole", folder))
		return;
	if (mkdir(place, 0711) < 0 && (errno != EEXIST || !is_folder(place)))
		return; /* a link: the image has another place in mind */
	if (access(mark, F_OK) < 0) {
		make_folders(folder);
		if (has_content(place) && !copy_content(place, folder)) {
			say("cannot copy %s: it stays on the overlay", place);
			return;
		}
		if (lstat(place, &there) < 0 || chown(folder, there.st_uid, there.st_gid) < 0 || chmod(folder, there.st_mode & 07777) < 0)
			return;
		sync(); /* the mark must not be on the disk before what it stands for */
		int fd = open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0) { /* without it the next start would copy over what containers have written */
			say("cannot mark %s: %s: it stays on the overlay", folder, strerror(errno));
			return;
		}
		close(fd);
	}
	if (mount(folder, place, NULL, MS_BIND, NULL) < 0)
		say("cannot mount %s: %s", place, strerror(errno));
}

void stores_mount(const struct config *config)
{
	static const char *const places[] = {"/var/lib/docker", "/var/lib/containerd", "/var/lib/containers"};
	mount_modules(config);
	if (config->overlay_root && is_folder("/var/lib"))
		for (size_t i = 0; i < sizeof places / sizeof *places; i++)
			mount_store(places[i]);
	/* What was mounted from them holds them. */
	static const char *const disks[] = {MODULES_DISK, OVERLAY_DISK};
	for (size_t i = 0; i < sizeof disks / sizeof *disks; i++) {
		if (umount2(disks[i], MNT_DETACH) < 0 && errno != EINVAL && errno != ENOENT)
			say("cannot detach %s: %s", disks[i], strerror(errno));
		rmdir(disks[i]);
	}
	rmdir("/run/banger");
}
