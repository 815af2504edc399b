/* Copies the host's files into the root, and the agent to where the end of a shutdown looks for it.
 *
 * Runs after the change of root, so that the image's symbolic links lead nowhere but into the image.
 */
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base.h"

static int copy_bytes(int from, int to)
{
	char buffer[16384];
	for (;;) {
		ssize_t got = read(from, buffer, sizeof buffer);
		if (got <= 0)
			return (int)got;
		for (ssize_t done = 0; done < got;) {
			ssize_t written = write(to, buffer + done, (size_t)(got - done));
			if (written < 0)
				return -1;
			done += written;
		}
	}
}

static int copy_file(int from, const char *path, mode_t mode)
{
	/* A link there (resolv.conf often is one) is replaced, not followed. */
	if (unlink(path) < 0 && errno != ENOENT)
		return -1;
	int to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (to < 0)
		return -1;
	int ended = copy_bytes(from, to);
	if (fchown(to, 0, 0) < 0 || fchmod(to, mode & 07777) < 0)
		ended = -1;
	if (close(to) < 0)
		ended = -1;
	return ended;
}

static void copy_folder(int folder, const char *path, int depth)
{
	DIR *entries = fdopendir(folder);
	if (!entries)
		return;
	for (struct dirent *entry; (entry = readdir(entries));) {
		char target[512];
		struct stat status;
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (!format_text(target, sizeof target, "%s/%s", path, entry->d_name) || depth > 16)
			continue;
		int from = openat(dirfd(entries), entry->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
		if (from < 0 || fstat(from, &status) < 0) {
			say("cannot read the host's %s: %s", target, strerror(errno));
		} else if (S_ISDIR(status.st_mode)) {
			if (mkdir(target, 0700) == 0 && (chown(target, 0, 0) < 0 || chmod(target, status.st_mode & 07777) < 0))
				say("cannot set the mode of %s: %s", target, strerror(errno));
			copy_folder(from, target, depth + 1); /* closes it */
			continue;
		} else if (copy_file(from, target, status.st_mode) < 0) {
			say("cannot write %s: %s", target, strerror(errno));
		}
		if (from >= 0)
			close(from);
	}
	closedir(entries);
}

void files_copy(int old_root)
{
	int folder = openat(old_root, "banger/files", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (folder >= 0)
		copy_folder(folder, "", 0);
}

int copy_self(const char *path)
{
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	if (from < 0)
		return -1;
	int ended = copy_file(from, path, 0755);
	close(from);
	return ended;
}
