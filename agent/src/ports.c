/* PORTS: who listens in this guest, out of /proc: sockets from net/{tcp,tcp6,udp,udp6}, their processes by
 * the socket's inode among the descriptors of each process.
 *
 * Everything is bounded: WIRE_MAX_PORTS listeners are told, the others counted; looking for processes ends
 * after SCAN_MS, and what has not been found by then is told without one.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base.h"
#include "requests.h"

#define SCAN_MS 2000
#define REPLY_MS 10000
#define TCP_LISTEN 10
#define UDP_UNCONNECTED 7

struct listener {
	const char *protocol;
	char address[INET6_ADDRSTRLEN];
	unsigned port, uid;
	unsigned long inode;
	pid_t pid; /* 0: not found */
	char process[64];
};

struct listeners {
	struct listener all[WIRE_MAX_PORTS];
	size_t count, left_out, nameless;
};

/* The kernel prints each 32-bit word of an address as a number of its own byte order. */
static bool read_address(const char *hex, char *text, size_t size)
{
	uint32_t words[4];
	size_t length = strlen(hex);
	char word[9] = "";
	if (length != 8 && length != 32)
		return false;
	for (size_t i = 0; i < length / 8; i++) {
		memcpy(word, hex + 8 * i, 8);
		words[i] = (uint32_t)strtoul(word, NULL, 16);
	}
	return inet_ntop(length == 8 ? AF_INET : AF_INET6, words, text, (socklen_t)size) != NULL;
}

static void read_line(struct listeners *found, const char *protocol, const char *line)
{
	char local[33], remote[33];
	unsigned port, remote_port, state, uid;
	unsigned long inode;
	struct listener listener = {.protocol = protocol};
	bool tcp = protocol[0] == 't';
	if (sscanf(line, " %*u: %32[0-9A-Fa-f]:%4x %32[0-9A-Fa-f]:%4x %2x %*x:%*x %*x:%*x %*x %u %*u %lu", local, &port, remote,
		   &remote_port, &state, &uid, &inode) != 7 || port > UINT16_MAX) /* %x takes a sign, too */
		return;
	if (tcp ? state != TCP_LISTEN : state != UDP_UNCONNECTED || remote_port)
		return;
	if (!read_address(local, listener.address, sizeof listener.address))
		return;
	if (found->count == WIRE_MAX_PORTS) {
		found->left_out++;
		return;
	}
	listener.port = port;
	listener.uid = uid;
	listener.inode = inode;
	found->all[found->count++] = listener;
}

static void read_table(struct listeners *found, const char *protocol, const char *path)
{
	char line[512];
	FILE *table = fopen(path, "re");
	if (!table)
		return; /* a kernel without IPv6 */
	while (fgets(line, sizeof line, table))
		read_line(found, protocol, line);
	fclose(table);
}

static int by_inode(const void *left, const void *right)
{
	const struct listener *a = left, *b = right;
	return a->inode < b->inode ? -1 : a->inode > b->inode;
}

/* With socket activation pid 1 has the socket, too: who else has it is whose it is. */
static void belongs(struct listeners *found, unsigned long inode, pid_t pid, const char *process)
{
	struct listener key = {.inode = inode};
	struct listener *listener = bsearch(&key, found->all, found->count, sizeof key, by_inode);
	if (!listener || (listener->pid && listener->pid != 1) || listener->pid == pid)
		return;
	if (pid != 1)
		found->nameless--;
	listener->pid = pid;
	format_text(listener->process, sizeof listener->process, "%s", process);
}

static void look_into(struct listeners *found, pid_t pid, int64_t deadline)
{
	char path[64], target[64], process[64] = "";
	format_text(path, sizeof path, "/proc/%d/fd", (int)pid);
	DIR *folder = opendir(path);
	if (!folder)
		return; /* it has ended */
	format_text(path, sizeof path, "/proc/%d/comm", (int)pid);
	if (read_file(path, process, sizeof process) > 0)
		process[strcspn(process, "\n")] = 0;
	for (struct dirent *entry; found->nameless && (entry = readdir(folder)) && until_ms(deadline) > 0;) {
		ssize_t length = readlinkat(dirfd(folder), entry->d_name, target, sizeof target - 1);
		if (length <= 0)
			continue;
		target[length] = 0;
		if (!strncmp(target, "socket:[", 8))
			belongs(found, strtoul(target + 8, NULL, 10), pid, process);
	}
	closedir(folder);
}

static void find_processes(struct listeners *found, int64_t deadline)
{
	DIR *proc = opendir("/proc");
	if (!proc)
		return;
	qsort(found->all, found->count, sizeof found->all[0], by_inode);
	found->nameless = found->count;
	for (struct dirent *entry; found->nameless && (entry = readdir(proc)) && until_ms(deadline) > 0;) {
		uint64_t pid;
		if (isdigit((unsigned char)entry->d_name[0]) && parse_number(entry->d_name, INT32_MAX, &pid))
			look_into(found, (pid_t)pid, deadline);
	}
	closedir(proc);
}

static bool tell(int fd, const struct listener *listener)
{
	struct builder builder = {0};
	put_text(&builder, PORT_PROTOCOL, listener->protocol);
	put_text(&builder, PORT_ADDRESS, listener->address);
	put_number(&builder, PORT_NUMBER, listener->port);
	put_number(&builder, PORT_UID, listener->uid);
	if (listener->pid) {
		put_number(&builder, PORT_PID, (uint64_t)listener->pid);
		put_text(&builder, PORT_PROCESS, listener->process);
	}
	return frame_write(fd, FRAME_PORT, builder.bytes, builder.length, now_ms() + REPLY_MS) == IO_OK;
}

void request_ports(int fd, const struct frame *request)
{
	struct builder builder = {0};
	struct listeners *found = calloc(1, sizeof *found);
	(void)request;
	if (!found) {
		reply_error(fd, "failed", "no memory", ENOMEM);
		return;
	}
	read_table(found, "tcp", "/proc/net/tcp");
	read_table(found, "tcp", "/proc/net/tcp6");
	read_table(found, "udp", "/proc/net/udp");
	read_table(found, "udp", "/proc/net/udp6");
	find_processes(found, now_ms() + SCAN_MS);
	bool told = true;
	for (size_t i = 0; told && i < found->count; i++)
		told = tell(fd, &found->all[i]);
	if (told) {
		put_number(&builder, PORTS_LEFT_OUT, found->left_out);
		reply_ok(fd, &builder);
	}
	free(found);
}
