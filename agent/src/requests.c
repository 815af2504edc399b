/* The table of requests, and the small ones: health, sync, time. */
#include "requests.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "hostcall.h"
#include "session.h"
#include "shared.h"

#define REQUEST_MS 30000 /* for the whole request to arrive */
#define REPLY_MS 10000
#define LINGER_MS 5000

void reply_error(int fd, const char *code, const char *message, int error)
{
	struct builder builder = {0};
	put_text(&builder, ERROR_CODE, code);
	put_text(&builder, ERROR_MESSAGE, message);
	if (error)
		put_number(&builder, ERROR_ERRNO, (uint64_t)error);
	frame_write(fd, FRAME_ERROR, builder.bytes, builder.length, now_ms() + REPLY_MS);
}

void reply_ok(int fd, const struct builder *builder)
{
	frame_write(fd, FRAME_OK, builder->bytes, builder->length, now_ms() + REPLY_MS);
}

static uint64_t memory_available_kib(void)
{
	char text[2048];
	if (read_file("/proc/meminfo", text, sizeof text) < 0)
		return 0;
	char *line = strstr(text, "MemAvailable:");
	return line ? strtoull(line + strlen("MemAvailable:"), NULL, 10) : 0;
}

static void put_disk(struct builder *builder, const char *path, uint8_t total_tag, uint8_t free_tag)
{
	struct statvfs disk;
	if (statvfs(path, &disk) < 0)
		return;
	put_number(builder, total_tag, (uint64_t)disk.f_blocks * disk.f_frsize);
	put_number(builder, free_tag, (uint64_t)disk.f_bavail * disk.f_frsize);
}

static void request_health(int fd, const struct frame *request)
{
	struct builder builder = {0};
	struct timespec uptime;
	struct sysinfo info;
	struct stat root, work;
	(void)request;
	enum phase phase = phase_now();
	clock_gettime(CLOCK_BOOTTIME, &uptime);
	put_number(&builder, HEALTH_UPTIME_S, (uint64_t)uptime.tv_sec);
	put_text(&builder, HEALTH_PHASE, phase_name(phase));
	if (phase >= PHASE_HANDOFF)
		put_text(&builder, HEALTH_INIT, shared->init);
	if (sysinfo(&info) == 0) {
		put_number(&builder, HEALTH_LOAD1_X100, ((uint64_t)info.loads[0] * 100) >> SI_LOAD_SHIFT);
		put_number(&builder, HEALTH_MEMORY_TOTAL_KIB, (uint64_t)info.totalram * info.mem_unit / 1024);
	}
	put_number(&builder, HEALTH_MEMORY_AVAILABLE_KIB, memory_available_kib());
	if (phase >= PHASE_HANDOFF) {
		put_disk(&builder, "/", HEALTH_ROOT_TOTAL_BYTES, HEALTH_ROOT_FREE_BYTES);
		if (stat("/", &root) == 0 && stat("/root", &work) == 0 && root.st_dev != work.st_dev)
			put_disk(&builder, "/root", HEALTH_WORK_TOTAL_BYTES, HEALTH_WORK_FREE_BYTES);
	}
	if (phase >= PHASE_HANDOFF)
		put_number(&builder, HEALTH_RUNNING_SESSIONS, sessions_running());
	reply_ok(fd, &builder);
}

static void request_sync(int fd, const struct frame *request)
{
	struct builder builder = {0};
	(void)request;
	sync();
	reply_ok(fd, &builder);
}

static void request_time(int fd, const struct frame *request)
{
	struct builder builder = {0};
	struct fields fields = fields_of(request);
	struct field field;
	uint64_t nanoseconds = 0;
	int more;
	while ((more = fields_next(&fields, &field)) > 0)
		if (field.tag == TIME_NANOSECONDS && !field_number(&field, &nanoseconds))
			more = -1;
	if (more < 0 || nanoseconds == 0 || nanoseconds > INT64_MAX) {
		reply_error(fd, "bad_request", "malformed TIME", 0);
		return;
	}
	struct timespec time = {.tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000)};
	if (shared->on_host)
		reply_error(fd, "unsupported", "not a guest", 0);
	else if (clock_settime(CLOCK_REALTIME, &time) < 0)
		reply_error(fd, "failed", "cannot set the clock", errno);
	else
		reply_ok(fd, &builder);
}

static const struct {
	uint8_t type;
	void (*serve)(int fd, const struct frame *request);
} table[] = {
	{FRAME_HEALTH, request_health}, {FRAME_EXEC, request_exec}, {FRAME_SHUTDOWN, request_shutdown},
	{FRAME_SYNC, request_sync},     {FRAME_TIME, request_time},
	{FRAME_PORTS, request_ports},
	{FRAME_SESSION_START, request_session_start},
	{FRAME_SESSION_LIST, request_session_list},
	{FRAME_SESSION_ATTACH, request_session_attach},
	{FRAME_SESSION_SIGNAL, request_session_signal},
	{FRAME_SESSION_STOP, request_session_stop},
	{FRAME_SESSION_LOGS, request_session_logs},
	{FRAME_SESSION_REMOVE, request_session_remove},
	{FRAME_SESSION_SEND, request_session_send},
	{FRAME_FORWARD, request_forward},
	{FRAME_PROBE, request_probe},
	{FRAME_NETWORK, request_network},
	{FRAME_COPY_IN, request_copy_in},
	{FRAME_COPY_OUT, request_copy_out},
};

static void dispatch(int fd, const struct frame *request)
{
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		if (table[i].type == request->type) {
			table[i].serve(fd, request);
			return;
		}
	}
	reply_error(fd, "unsupported", "this agent does not know the request", 0);
}

/* Closing with bytes unread may cost the peer what was sent last: let it close first. */
static void linger(int fd)
{
	char ignored[4096];
	int64_t deadline = now_ms() + LINGER_MS;
	shutdown(fd, SHUT_WR);
	while (read_exactly(fd, ignored, sizeof ignored, deadline) == IO_OK)
		;
}

static bool say_hello(int fd)
{
	struct builder hello = {0};
	put_hello(&hello);
	return frame_write(fd, FRAME_HELLO, hello.bytes, hello.length, now_ms() + REPLY_MS) == IO_OK;
}

void requests_refuse(int fd)
{
	if (!say_hello(fd))
		return;
	reply_error(fd, "busy", "too many connections", 0);
	linger(fd);
}

void requests_serve(int fd)
{
	struct frame request;
	if (!say_hello(fd))
		return;
	switch (frame_read(fd, &request, now_ms() + REQUEST_MS)) {
	case IO_OK:
		dispatch(fd, &request);
		frame_free(&request);
		break;
	case IO_TOO_LONG:
		reply_error(fd, "bad_request", "frame too long", 0);
		break;
	default:
		return;
	}
	linger(fd);
}
