/* Loads the initramfs' modules with finit_module; dependency order is the list's. */
#include "modules.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base.h"

static void load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		say("cannot open module %s: %s", path, strerror(errno));
		return;
	}
	if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST && errno != ENODEV)
		say("cannot load module %s: %s", path, strerror(errno));
	close(fd);
}

void modules_load(const char *list)
{
	static char text[16384];
	if (read_file(list, text, sizeof text) < 0)
		return; /* a kernel with everything built in has no list */
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		load(line);
}
