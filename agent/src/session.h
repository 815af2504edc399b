/* Sessions: commands that outlive the connection that asked for them.
 *
 * sessions.c serves the requests, sessionkeeper.c is the process that owns a command, sessionview.c shows a
 * session to a host (attach, logs, send), sessionstore.c is their folders and records. A session is a folder,
 * `<state>/sessions/<id>`; it runs exactly as long as somebody listens at its name.
 */
#ifndef BANGER_SESSION_H
#define BANGER_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "command.h"
#include "frame.h"

#define KEEPER_NAME "banger-session"
#define KEEPER_SOCKET "keeper"
#define SESSION_ID_LENGTH 32
#define SESSION_PIECE 32768 /* the most that one message carries */
#define SESSION_LOGS 2

/* Between a connection's process and a keeper: datagrams in order (SOCK_SEQPACKET). */
enum operation {
	OPERATION_RECORD,   /* → RECORD and the record's fields */
	OPERATION_JOIN,     /* a: JOIN_… → JOINED, then NOTE and CREDIT as they come */
	OPERATION_INPUT,    /* bytes for stdin, within the credit; from the writer only, like the next three */
	OPERATION_INPUT_END,
	OPERATION_RESIZE,   /* a rows, b cols */
	OPERATION_SIGNAL,   /* a: number → DONE, or GONE when the command has ended. From anybody */
	OPERATION_STOP,     /* a: grace in ms. From anybody */
	OPERATION_HANG_UP,  /* the machine is about to end. From anybody */
	OPERATION_DISCARD,  /* kill, and lose what cannot be written. From anybody */
	OPERATION_JOINED,   /* a: STARTED_FLAG_…, b: credit */
	OPERATION_NOTE,     /* the logs have grown */
	OPERATION_CREDIT,   /* a: bytes of stdin more */
	OPERATION_DONE,
	OPERATION_GONE,
	OPERATION_FULL,     /* instead of JOINED: too many have */
};

#define JOIN_WRITE 1  /* if nobody else does */
#define JOIN_READER 2 /* counts as attached */
#define JOIN_NOTES 4

struct message {
	uint32_t operation;
	uint32_t a, b;
	uint8_t bytes[SESSION_PIECE];
};
#define MESSAGE_HEAD offsetof(struct message, bytes)

/* sessionstore.c */

extern const char *const session_logs[SESSION_LOGS];

bool session_id_valid(const char *id);

/* The folder of all sessions. A descriptor, or -1 with errno. */
int sessions_folder(bool create);
int session_folder(int sessions, const char *id);

/* Replace a file of a session's folder, whole or not at all. False with errno. */
bool session_write(int folder, const char *name, const void *bytes, size_t length);

/* The fields in a session's file: malloc'ed, as a frame without type. False with errno. */
bool session_read(int folder, const char *name, struct frame *frame);

/* The first field with the tag in it, as a number or a text. */
bool session_number(const struct frame *frame, uint8_t tag, uint64_t *number);
bool session_text(const struct frame *frame, uint8_t tag, char *buffer, size_t size);

/* Call for each id that has a folder, at most WIRE_MAX_SESSIONS times, until it returns false. */
void sessions_each(int sessions, bool (*take)(int sessions, const char *id, void *context), void *context);

struct record {
	uint8_t bytes[WIRE_MAX_PAYLOAD];
	size_t length;
	struct frame status; /* the end of it as it is, fields from STATUS on; points into bytes */
};

/* The record, with at most `most` bytes of arguments and variables. A keeper is waited for until the deadline.
 * False: there is no such session. */
bool session_record(struct record *record, int sessions, const char *id, size_t most, int64_t deadline);

/* A listening socket in the session's folder. -1 with errno. */
int keeper_listen(int sessions, const char *id);

/* A connection to the keeper: -1 where there is none, -2 where it is too busy to answer. */
int keeper_connect(int sessions, const char *id);
bool keeper_send(int keeper, const struct message *message, size_t length, int64_t deadline);

/* The next message: its length, 0 when the keeper has gone, -1 at the deadline. */
ssize_t keeper_receive(int keeper, struct message *message, int64_t deadline);

uint64_t sessions_running(void);

/* Tell all keepers that the machine is about to end. Waits for none of them. */
void sessions_hang_up(void);

/* sessionkeeper.c: owns the command until its end is written down; never returns. */
void keeper_run(int folder, int listener, const struct asked *asked) __attribute__((noreturn));

/* sessionview.c */

struct view_request {
	const char *id;
	int sessions; /* the folder of all */
	uint64_t flags, rows, cols, tail;
	bool has_tail;
};

void view_attach(int fd, const struct view_request *request);
void view_logs(int fd, const struct view_request *request);
void view_send(int fd, const struct view_request *request);

#endif
