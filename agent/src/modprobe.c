/* What the kernel runs to load a module it needs (a file system, a link type, a netfilter match).
 *
 * As much of kmod's modprobe as that takes: names and aliases of /lib/modules/<release>, what a module depends on.
 * Nothing of modprobe.d: an image that has that has a modprobe. Runs as a process of its own, as root; errors
 * are the kernel's to report.
 */
#include "modprobe.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base.h"
#include "ending.h"

#define COMPRESSED 4 /* MODULE_INIT_COMPRESSED_FILE, Linux 5.17 */
#define MAX_NEEDED 128

static char folder[128];

void modprobe_offer(void)
{
	if (access("/sbin/modprobe", X_OK) < 0 && write_file("/proc/sys/kernel/modprobe", EXITRD "/shutdown") < 0)
		say("cannot offer to load modules: %s", strerror(errno));
}

/* The kernel takes - and _ for the same, but for what stands in brackets of a pattern. */
static void normalise(char *name)
{
	bool in_brackets = false;
	for (; *name; name++) {
		if (*name == '[')
			in_brackets = true;
		else if (*name == ']')
			in_brackets = false;
		else if (*name == '-' && !in_brackets)
			*name = '_';
	}
}

static FILE *open_index(const char *name)
{
	char path[200];
	return format_text(path, sizeof path, "%s/%s", folder, name) ? fopen(path, "re") : NULL;
}

/* Whether path, below the folder, is the file of that module. */
static bool is_module(const char *path, const char *name)
{
	char base[128];
	const char *slash = strrchr(path, '/');
	if (!format_text(base, sizeof base, "%s", slash ? slash + 1 : path))
		return false;
	char *suffix = strstr(base, ".ko");
	if (!suffix)
		return false;
	*suffix = 0;
	normalise(base);
	return !strcmp(base, name);
}

static bool load_file(const char *path)
{
	char full[512];
	size_t length = strlen(path);
	if (!format_text(full, sizeof full, "%s/%s", folder, path))
		return false;
	int fd = open(full, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	int flags = length > 3 && !strcmp(path + length - 3, ".ko") ? 0 : COMPRESSED;
	bool loaded = syscall(SYS_finit_module, fd, "", flags) == 0 || errno == EEXIST;
	close(fd);
	return loaded;
}

/* A line of modules.dep is `path: needed needed…`, the ones to be loaded first last. */
static bool load(const char *name)
{
	FILE *index = open_index("modules.dep");
	char *line = NULL;
	size_t size = 0;
	bool loaded = false;
	if (!index)
		return false;
	while (!loaded && getline(&line, &size, index) > 0) {
		char *colon = strchr(line, ':');
		if (!colon)
			continue;
		*colon = 0;
		if (!is_module(line, name))
			continue;
		char *needed[MAX_NEEDED];
		size_t count = 0;
		for (char *word = strtok(colon + 1, " \n"); word && count < MAX_NEEDED; word = strtok(NULL, " \n"))
			needed[count++] = word;
		while (count)
			load_file(needed[--count]);
		loaded = load_file(line);
	}
	free(line);
	fclose(index);
	return loaded;
}

/* A line of modules.alias is `alias pattern module`; all that match are tried, as modprobe does. */
static bool load_by_alias(const char *name)
{
	FILE *index = open_index("modules.alias");
	char *line = NULL;
	size_t size = 0;
	bool loaded = false;
	if (!index)
		return false;
	while (getline(&line, &size, index) > 0) {
		char *state = NULL;
		char *word = strtok_r(line, " \n", &state);
		char *pattern = strtok_r(NULL, " \n", &state);
		char *module = strtok_r(NULL, " \n", &state);
		if (!word || strcmp(word, "alias") || !pattern || !module)
			continue;
		normalise(pattern);
		normalise(module);
		if (fnmatch(pattern, name, 0) == 0 && load(module))
			loaded = true;
	}
	free(line);
	fclose(index);
	return loaded;
}

int modprobe_run(const char *name)
{
	struct utsname kernel;
	char wanted[256];
	if (uname(&kernel) < 0 || !format_text(folder, sizeof folder, "/lib/modules/%s", kernel.release) ||
	    !format_text(wanted, sizeof wanted, "%s", name))
		return 1;
	normalise(wanted);
	return load(wanted) || load_by_alias(wanted) ? 0 : 1;
}
