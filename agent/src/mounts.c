/* What is mounted where. Errors come back as text, for the console's one line. */
#include "mounts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base.h"
#include "stores.h"

static char problem[512];

static const char *failed(const char *what, const char *name)
{
	format_text(problem, sizeof problem, "cannot %s %s: %s", what, name, strerror(errno));
	return problem;
}

void make_folders(const char *path)
{
	char part[256];
	if (!format_text(part, sizeof part, "%s", path))
		return;
	for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		mkdir(part, 0755);
		*slash = '/';
	}
	mkdir(part, 0755);
}

static void mount_here(const char *kind, const char *where, unsigned long flags, const char *options)
{
	mkdir(where, 0755);
	/* EBUSY: the kernel mounted it already (devtmpfs.mount). */
	if (mount(kind, where, kind, flags, options) < 0 && errno != EBUSY)
		say("cannot mount %s: %s", where, strerror(errno));
}

void mount_basics(void)
{
	mount_here("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
	mount_here("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_here("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	/* Executable: the program of the end of a shutdown lies in it. */
	mount_here("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
	/* Terminals for commands that run before the image's init has mounted this itself. */
	mount_here("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=000");
}

static bool wait_for_device(const char *device)
{
	/* The driver's probe was synchronous; only the node may still be under way. */
	int64_t deadline = now_ms() + 10000;
	while (access(device, F_OK) < 0) {
		if (now_ms() >= deadline)
			return false;
		sleep_ms(2);
	}
	return true;
}

const char *mount_disk(const char *device, const char *where, unsigned long flags)
{
	if (!wait_for_device(device))
		return failed("find", device);
	make_folders(where);
	if (mount(device, where, "ext4", flags, NULL) == 0)
		return NULL;
	return failed("mount", device);
}

const char *mount_root(const struct config *config)
{
	const char *why;
	if (!config->overlay_root)
		return mount_disk(config->root, "/newroot", 0);
	if ((why = mount_disk(config->root, "/lower", MS_RDONLY)))
		return why;
	if ((why = mount_disk(config->overlay, OVERLAY_DISK, 0)))
		return why;
	mkdir(OVERLAY_DISK "/upper", 0755);
	mkdir(OVERLAY_DISK "/work", 0755);
	mkdir("/newroot", 0755);
	if (mount("overlay", "/newroot", "overlay", 0, "lowerdir=/lower,upperdir=" OVERLAY_DISK "/upper,workdir=" OVERLAY_DISK "/work") < 0)
		return failed("mount", "the overlay root");
	/* The overlay holds both file systems by itself. Without names of their own they end, cleanly, with it:
	 * the image's now, the other one's in stores_mount. */
	if (umount2("/lower", MNT_DETACH) < 0)
		return failed("detach", "the image's disk");
	return NULL;
}

const char *switch_root(int *old_root)
{
	static const char *const basics[] = {"/dev", "/proc", "/sys", "/run"};
	*old_root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (size_t i = 0; i < sizeof basics / sizeof *basics; i++) {
		char target[32];
		format_text(target, sizeof target, "/newroot%s", basics[i]);
		struct stat there;
		if (lstat(target, &there) < 0)
			mkdir(target, 0755);
		else if (!S_ISDIR(there.st_mode))
			return failed("use the image's", basics[i]);
		if (mount(basics[i], target, NULL, MS_MOVE, NULL) < 0)
			return failed("move", basics[i]);
	}
	if (chdir("/newroot") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return failed("change to", "the new root");
	return NULL;
}

static void delete_below(int folder, dev_t device, int depth)
{
	int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *entries = copy < 0 ? NULL : fdopendir(copy);
	if (!entries)
		return;
	for (struct dirent *entry; (entry = readdir(entries));) {
		struct stat status;
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (fstatat(folder, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0 || status.st_dev != device)
			continue;
		if (!S_ISDIR(status.st_mode)) {
			unlinkat(folder, entry->d_name, 0);
			continue;
		}
		int child = openat(folder, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (child >= 0 && depth < 16)
			delete_below(child, device, depth + 1);
		if (child >= 0)
			close(child);
		unlinkat(folder, entry->d_name, AT_REMOVEDIR);
	}
	closedir(entries);
}

void initramfs_delete(int old_root)
{
	struct stat old, new;
	/* Never delete what might be the new root. */
	if (fstat(old_root, &old) == 0 && stat("/", &new) == 0 && old.st_dev != new.st_dev)
		delete_below(old_root, old.st_dev, 0);
	close(old_root);
}

const char *mount_work(const struct config *config)
{
	if (!config->work[0])
		return NULL;
	return mount_disk(config->work, "/root", 0);
}

/* Undo the kernel's escapes of blanks and backslashes in /proc/self/mounts. */
static void unescape(char *text)
{
	char *to = text;
	for (char *from = text; *from; from++) {
		if (from[0] == '\\' && from[1] && from[2] && from[3]) {
			*to++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
			from += 3;
		} else {
			*to++ = *from;
		}
	}
	*to = 0;
}

static bool is_below(const char *path, const char *top)
{
	size_t length = strlen(top);
	return strncmp(path, top, length) == 0 && (path[length] == 0 || path[length] == '/');
}

#define MAX_MOUNTS 2048

bool unmount_below(const char *top)
{
	size_t left = 0;
	/* Some only let go after others have: repeat while it helps. */
	for (size_t before = SIZE_MAX;; before = left) {
		char *paths[MAX_MOUNTS];
		size_t count = 0;
		FILE *mounts = fopen("/proc/self/mounts", "re");
		if (!mounts)
			return false;
		char *line = NULL;
		size_t size = 0;
		while (count < MAX_MOUNTS && getline(&line, &size, mounts) > 0) {
			char *path = strchr(line, ' ');
			char *end = path ? strchr(path + 1, ' ') : NULL;
			if (!end)
				continue;
			*end = 0;
			unescape(++path);
			if (is_below(path, top) && (paths[count] = strdup(path)))
				count++;
		}
		free(line);
		fclose(mounts);
		left = count;
		bool last_try = left == before;
		while (count--) {
			if (umount2(paths[count], UMOUNT_NOFOLLOW) == 0)
				left--;
			else if (last_try)
				say("cannot unmount %s: %s", paths[count], strerror(errno));
			free(paths[count]);
		}
		if (left == 0 || left >= before)
			return left == 0;
	}
}
