/* Removes what a copy began and could not end. */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "copy.h"

static void empty(int folder, int depth)
{
	DIR *entries = fdopendir(folder);
	if (!entries) {
		close(folder);
		return;
	}
	for (struct dirent *entry; (entry = readdir(entries));) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || unlinkat(dirfd(entries), entry->d_name, 0) == 0)
			continue;
		int below = openat(dirfd(entries), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (below < 0)
			continue;
		fchmod(below, 0700);
		if (depth < COPY_MAX_DEPTH + 8)
			empty(below, depth + 1);
		else
			close(below);
		unlinkat(dirfd(entries), entry->d_name, AT_REMOVEDIR);
	}
	closedir(entries);
}

void copy_remove(int parent, const char *name)
{
	if (unlinkat(parent, name, 0) == 0)
		return;
	int folder = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (folder < 0)
		return;
	empty(folder, 0);
	unlinkat(parent, name, AT_REMOVEDIR);
}
