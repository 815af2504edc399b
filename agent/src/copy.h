/* Copies between host and guest: what copy*.c share. ARCHITECTURE.md, "Copies". */
#ifndef BANGER_COPY_H
#define BANGER_COPY_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "frame.h"
#include "tar.h"

#define COPY_MAX_DEPTH 900
#define COPY_MESSAGE 1024

/* How a copy ended when it did not end well. errno's number in error; 0 where there is none. */
struct copy_fault {
	bool is_set;
	bool host_gone; /* nobody is there to be told */
	int error;
	char code[16];
	char message[COPY_MESSAGE];
};

struct copy_request {
	char path[4096]; /* absolute from copy_parse on */
	char name[256];
	uint64_t flags;
};

/* The connection, for one direction at a time. */
struct copy_stream {
	struct tar_source source; /* first: the tar reader's view of what comes */
	int fd;
	struct copy_fault *fault;
	size_t left;   /* of the DATA frame that is being read */
	bool ended;    /* END came */
	size_t start, length;
	unsigned notes; /* sent so far */
	int64_t looked; /* when the machine's end was last looked for */
	uint8_t bytes[WIRE_HEADER_BYTES + WIRE_MAX_COPY_PAYLOAD];
};

/* Sets the fault unless there is one already. "what: path: why" with error's words. */
void copy_fail(struct copy_fault *fault, const char *code, const char *what, const char *path, int error);

/* Coming: fill the source in, to be read by tar_next. After the last entry: read up to the host's END. */
void copy_receive(struct copy_stream *stream, int fd, struct copy_fault *fault);
bool copy_finish_receiving(struct copy_stream *stream);

/* Going: room to write to (never 0 bytes; NULL when the host has gone), how much of it was used. */
void copy_send(struct copy_stream *stream, int fd, struct copy_fault *fault);
uint8_t *copy_room(struct copy_stream *stream, size_t *room);
void copy_wrote(struct copy_stream *stream, size_t length);
bool copy_put(struct copy_stream *stream, const void *bytes, size_t length);
bool copy_flush(struct copy_stream *stream);
bool copy_note(struct copy_stream *stream, const char *what, const char *path);

/* copyin.c: an archive becomes files. parent and name: where its top goes; name NULL: into parent itself. */
struct copy_target {
	int parent;
	const char *name;
	bool owners; /* keep them, and what only root may have: set-id bits, devices */
	bool replace; /* a folder at the archive's top takes the place of what has its name, as a whole */
	const char *aside; /* what that is called then; NULL: it is removed */
	const char *shown; /* how messages begin: the target's path */
};

void copy_extract(struct copy_stream *stream, const struct copy_target *target, uint64_t *entries);

/* copyout.c: a tree becomes an archive. prefix: what the top is called in it, "" for none ("."). */
void copy_archive(struct copy_stream *stream, const char *path, const char *prefix, uint64_t flags, uint64_t *entries);

/* copyremove.c: a name and all below it; links are not followed. */
void copy_remove(int parent, const char *name);

#endif
