/* One program, four parts: /init of the initramfs, /shutdown at the end of a machine, what the kernel calls to
 * load a module, a server for tests. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base.h"
#include "ending.h"
#include "init.h"
#include "modprobe.h"
#include "server.h"

int main(int argc, char **argv)
{
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	const char *name = slash ? slash + 1 : (argc > 0 ? argv[0] : "");
	if (getpid() == 1 && !strcmp(name, "shutdown"))
		ending_run(argc > 1 ? argv[1] : "poweroff");
	if (getpid() == 1)
		init_run(argv);
	if (argc == 4 && !strcmp(argv[1], "-q") && !strcmp(argv[2], "--"))
		return modprobe_run(argv[3]);
	if ((argc == 3 || argc == 4) && !strcmp(argv[1], "--serve-unix"))
		server_run_unix(argv[2], argc == 4 ? argv[3] : NULL);
	fprintf(stderr, "banger-agent %s: pid 1 of a banger guest; elsewhere only --serve-unix PATH [READY_PATH]\n", AGENT_VERSION);
	return 2;
}
