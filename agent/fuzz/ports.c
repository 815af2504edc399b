/* The tables of /proc/net, and whose a socket is. */
#include "fuzz.h"

#include "../src/ports.c"

void fuzz_ports(const uint8_t *data, size_t size)
{
	static struct listeners found;
	struct input input = {data, size};
	uint8_t kind = take_byte(&input);
	memset(&found, 0, sizeof found);
	bytes_as_file(0, input.at, input.left);
	read_table(&found, kind & 1 ? "tcp" : "udp", path_of_bytes(0));
	REQUIRE(found.count <= WIRE_MAX_PORTS);
	qsort(found.all, found.count, sizeof found.all[0], by_inode);
	found.nameless = found.count;
	for (size_t i = 0; i < found.count; i++) {
		REQUIRE(found.all[i].port <= UINT16_MAX && memchr(found.all[i].address, 0, sizeof found.all[i].address));
		belongs(&found, found.all[i].inode, (pid_t)(kind % 7 + 1), "a process");
		REQUIRE(found.nameless <= found.count);
	}
}
