/* COPY_IN and COPY_OUT: reads the request, finds out what the path means, hands over to the copying. */
#include "copy.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base.h"
#include "requests.h"
#include "shared.h"
#include "users.h"

#define ROOT_MS 60000
#define REPLY_MS 10000
#define DESCRIPTORS 2048

static bool take_request(struct copy_request *request, const struct frame *frame)
{
	struct fields fields = fields_of(frame);
	struct field field;
	int more;
	while ((more = fields_next(&fields, &field)) > 0) {
		if (field.tag == COPY_PATH && !field_text(&field, request->path, sizeof request->path))
			return false;
		if (field.tag == COPY_NAME && !field_text(&field, request->name, sizeof request->name))
			return false;
		if (field.tag == COPY_FLAGS && !field_number(&field, &request->flags))
			return false;
	}
	return more == 0 && !strchr(request->name, '/') && strcmp(request->name, "..") != 0;
}

/* From root's home where it is relative, or begins with ~. */
static bool make_absolute(struct copy_request *request)
{
	static struct account root;
	char given[sizeof request->path];
	memcpy(given, request->path, sizeof given);
	if (given[0] == '/')
		return true;
	const char *rest = given;
	if (given[0] == '~' && (given[1] == '/' || !given[1]))
		rest = given + 1 + (given[1] == '/');
	if (!user_find(&root, ""))
		return false;
	bool bare = !strcmp(root.home, "/");
	return format_text(request->path, sizeof request->path, "%s%s%s", bare ? "" : root.home, *rest || bare ? "/" : "", rest);
}

/* The process is the connection's own: its root may still be shared with pid 1's, and so its umask. */
static void prepare(void)
{
	struct rlimit descriptors;
	unshare(CLONE_FS);
	umask(0);
	if (getrlimit(RLIMIT_NOFILE, &descriptors) == 0 && descriptors.rlim_cur < DESCRIPTORS) {
		descriptors.rlim_cur = descriptors.rlim_max < DESCRIPTORS ? descriptors.rlim_max : DESCRIPTORS;
		setrlimit(RLIMIT_NOFILE, &descriptors);
	}
}

static void report(int fd, const struct copy_fault *fault)
{
	if (!fault->host_gone)
		reply_error(fd, fault->code, fault->message, fault->error);
}

static void out(int fd, struct copy_request *request, struct copy_stream *stream)
{
	struct copy_fault fault = {0};
	struct builder done = {0};
	uint64_t entries = 0;
	copy_send(stream, fd, &fault);
	copy_archive(stream, request->path, request->name, request->flags, &entries);
	if (fault.is_set) {
		report(fd, &fault);
		return;
	}
	put_number(&done, COPY_DONE_ENTRIES, entries);
	frame_write(fd, FRAME_COPY_END, done.bytes, done.length, now_ms() + REPLY_MS);
}

/* The last name of a path without slashes behind it; its folder is made the path. */
static char *split(char *path)
{
	size_t length = strlen(path);
	while (length > 1 && path[length - 1] == '/')
		path[--length] = 0;
	char *slash = strrchr(path, '/');
	if (!slash)
		return path;
	*slash = 0;
	return slash + 1;
}

/* docker cp's rules: what there is at the path decides where the copy goes. -1: it goes nowhere. */
static int find_target(struct copy_request *request, struct copy_target *target, struct copy_fault *fault)
{
	static char real[PATH_MAX];
	bool folder = request->flags & (COPY_FLAG_FOLDER | COPY_FLAG_ARCHIVE);
	size_t length = strlen(request->path);
	bool slashed = request->path[length - 1] == '/' || (length > 1 && !strcmp(request->path + length - 2, "/."));
	int into = open(request->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int why = errno;
	if (into >= 0) {
		bool whole = request->flags & (COPY_FLAG_CONTENTS | COPY_FLAG_ARCHIVE);
		target->name = whole || !request->name[0] ? NULL : request->name;
		return into;
	}
	if (why != ENOENT && why != ENOTDIR) {
		copy_fail(fault, "failed", "", request->path, why);
		return -1;
	}
	struct stat status;
	bool there = lstat(request->path, &status) == 0;
	if ((request->flags & COPY_FLAG_ARCHIVE) || (slashed && (!folder || there || why == ENOTDIR))) {
		copy_fail(fault, why == ENOENT ? "not_found" : "failed", why == ENOENT ? "there is no folder" : "is no folder:", request->path, 0);
		return -1;
	}
	if (there && S_ISLNK(status.st_mode) && realpath(request->path, real))
		format_text(request->path, sizeof request->path, "%s", real);
	if (there && folder) {
		copy_fail(fault, "failed", "is there already and is no folder:", request->path, 0);
		return -1;
	}
	if (slashed && length > 1 && request->path[length - 1] == '.')
		request->path[length - 2] = 0;
	target->name = split(request->path);
	into = open(request->path[0] ? request->path : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (into < 0)
		copy_fail(fault, errno == ENOENT ? "not_found" : "failed", "there is no folder", request->path, errno == ENOENT ? 0 : errno);
	if (into >= 0 && (!target->name[0] || !strcmp(target->name, ".") || !strcmp(target->name, ".."))) {
		copy_fail(fault, "bad_request", "no name for a copy:", request->path, 0);
		close(into);
		return -1;
	}
	return into;
}

static void in(int fd, struct copy_request *request, struct copy_stream *stream)
{
	struct copy_fault fault = {0};
	struct copy_target target = {.owners = request->flags & COPY_FLAG_OWNERS};
	target.replace = (request->flags & COPY_FLAG_ARCHIVE) && (request->flags & COPY_FLAG_REPLACE);
	target.aside = request->name[0] ? request->name : NULL;
	struct builder done = {0};
	char shown[sizeof request->path];
	uint64_t entries = 0;
	memcpy(shown, request->path, sizeof shown);
	target.parent = find_target(request, &target, &fault);
	if (target.name == request->name)
		format_text(shown, sizeof shown, "%.3800s/%s", request->path, request->name);
	target.shown = shown;
	if (target.parent >= 0) {
		copy_receive(stream, fd, &fault);
		if (frame_write(fd, FRAME_COPY_STARTED, NULL, 0, now_ms() + REPLY_MS) == IO_OK)
			copy_extract(stream, &target, &entries);
		else
			fault.is_set = fault.host_gone = true;
		close(target.parent);
	}
	if (fault.is_set) {
		report(fd, &fault);
		return;
	}
	put_number(&done, COPY_DONE_ENTRIES, entries);
	reply_ok(fd, &done);
}

static void serve(int fd, const struct frame *frame, void (*copy)(int, struct copy_request *, struct copy_stream *))
{
	struct copy_request *request = calloc(1, sizeof *request);
	struct copy_stream *stream = calloc(1, sizeof *stream);
	if (!request || !stream) {
		reply_error(fd, "failed", "no memory", ENOMEM);
	} else if (!take_request(request, frame)) {
		reply_error(fd, "bad_request", "malformed request for a copy", 0);
	} else if (!phase_wait(PHASE_HANDOFF, now_ms() + ROOT_MS)) {
		reply_error(fd, "busy", "the guest has no root yet", 0);
	} else if (!make_absolute(request)) {
		reply_error(fd, "bad_request", "the path is too long", 0);
	} else {
		prepare();
		copy(fd, request, stream);
	}
	free(stream);
	free(request);
}

void request_copy_in(int fd, const struct frame *request)
{
	serve(fd, request, in);
}

void request_copy_out(int fd, const struct frame *request)
{
	serve(fd, request, out);
}
