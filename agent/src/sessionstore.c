/* The folders of sessions, their records, and the way to their keepers.
 *
 * Files hold fields as the wire has them. `session` is written once, `status` and `seen` are replaced by
 * rename. A status that is not final, of a session whose keeper does not live, is what a crash left.
 */
#include "session.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base.h"
#include "mounts.h"
#include "shared.h"

#define STATE_ROOM 8192 /* of a record, for what is not the request */
#define MAX_FILE (WIRE_MAX_EXEC_PAYLOAD + WIRE_MAX_PAYLOAD)

const char *const session_logs[SESSION_LOGS] = {"stdout.log", "stderr.log"};

bool session_id_valid(const char *id)
{
	return strlen(id) == SESSION_ID_LENGTH && strspn(id, "0123456789abcdef") == SESSION_ID_LENGTH;
}

static const char *state_folder(void)
{
	return shared->on_host ? shared->state : "/var/lib/banger";
}

int sessions_folder(bool create)
{
	char path[160];
	if (!format_text(path, sizeof path, "%s/sessions", state_folder())) {
		errno = ENAMETOOLONG;
		return -1;
	}
	if (create && access(path, F_OK) < 0) {
		make_folders(state_folder());
		if (mkdir(path, 0700) < 0 && errno != EEXIST)
			return -1;
	}
	return open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

int session_folder(int sessions, const char *id)
{
	return openat(sessions, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static bool write_all(int fd, const uint8_t *bytes, size_t length)
{
	while (length) {
		ssize_t written = write(fd, bytes, length);
		if (written < 0 && errno != EINTR)
			return false;
		if (written > 0) {
			bytes += written;
			length -= (size_t)written;
		}
	}
	return true;
}

bool session_write(int folder, const char *name, const void *bytes, size_t length)
{
	char made[64];
	format_text(made, sizeof made, ".%s.%d", name, (int)getpid());
	int fd = openat(folder, made, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	bool done = write_all(fd, bytes, length);
	int why = errno;
	close(fd);
	if (done && renameat(folder, made, folder, name) == 0)
		return true;
	if (done)
		why = errno;
	unlinkat(folder, made, 0);
	errno = why;
	return false;
}

bool session_read(int folder, const char *name, struct frame *frame)
{
	struct stat status;
	*frame = (struct frame){0};
	int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return false;
	bool done = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size <= MAX_FILE;
	if (done && status.st_size > 0) {
		frame->payload = malloc((size_t)status.st_size);
		done = frame->payload != NULL;
		while (done && frame->length < (uint32_t)status.st_size) {
			ssize_t got = read(fd, frame->payload + frame->length, (size_t)status.st_size - frame->length);
			if (got <= 0)
				break;
			frame->length += (uint32_t)got;
		}
	}
	close(fd);
	return done;
}

static bool find(const struct frame *frame, uint8_t tag, struct field *field)
{
	struct fields fields = fields_of(frame);
	while (fields_next(&fields, field) > 0)
		if (field->tag == tag)
			return true;
	return false;
}

bool session_number(const struct frame *frame, uint8_t tag, uint64_t *number)
{
	struct field field;
	return find(frame, tag, &field) && field_number(&field, number);
}

bool session_text(const struct frame *frame, uint8_t tag, char *buffer, size_t size)
{
	struct field field;
	return find(frame, tag, &field) && field_text(&field, buffer, size);
}

void sessions_each(int sessions, bool (*take)(int sessions, const char *id, void *context), void *context)
{
	int again = openat(sessions, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *entries = again < 0 ? NULL : fdopendir(again);
	int count = 0;
	if (!entries)
		return;
	for (struct dirent *entry; count < WIRE_MAX_SESSIONS && (entry = readdir(entries));) {
		if (!session_id_valid(entry->d_name))
			continue;
		count++;
		if (!take(sessions, entry->d_name, context))
			break;
	}
	closedir(entries);
}

/* The keeper's name is a socket in the session's folder, which is root's: nobody else can take the name, or
 * stand in the way of those who call. One that nobody listens at any more refuses. */
static void keeper_address(struct sockaddr_un *address, int sessions, const char *id)
{
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	format_text(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/%s/" KEEPER_SOCKET, sessions, id);
}

int keeper_listen(int sessions, const char *id)
{
	struct sockaddr_un address;
	keeper_address(&address, sessions, id);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && chmod(address.sun_path, 0600) == 0 &&
	    listen(fd, 64) == 0)
		return fd;
	int why = errno;
	if (fd >= 0)
		close(fd);
	errno = why;
	return -1;
}

int keeper_connect(int sessions, const char *id)
{
	struct sockaddr_un address;
	struct ucred peer;
	socklen_t size = sizeof peer;
	keeper_address(&address, sessions, id);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -2;
	bool busy = connect(fd, (struct sockaddr *)&address, sizeof address) < 0;
	if (!busy && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid())
		return fd;
	busy = busy && errno == EAGAIN;
	close(fd);
	return busy ? -2 : -1;
}

bool keeper_send(int keeper, const struct message *message, size_t length, int64_t deadline)
{
	for (;;) {
		struct pollfd poller = {.fd = keeper, .events = POLLOUT};
		if (send(keeper, message, MESSAGE_HEAD + length, MSG_NOSIGNAL) >= 0)
			return true;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN || until_ms(deadline) == 0)
			return false;
		poll(&poller, 1, until_ms(deadline));
	}
}

ssize_t keeper_receive(int keeper, struct message *message, int64_t deadline)
{
	for (;;) {
		struct pollfd poller = {.fd = keeper, .events = POLLIN};
		ssize_t got = recv(keeper, message, sizeof *message, 0);
		if (got >= (ssize_t)MESSAGE_HEAD)
			return got;
		if (got >= 0 || (errno != EAGAIN && errno != EINTR))
			return 0;
		if (errno == EAGAIN && until_ms(deadline) == 0)
			return -1;
		if (errno == EAGAIN)
			poll(&poller, 1, until_ms(deadline));
	}
}

static void put(struct record *record, uint8_t tag, const void *bytes, size_t length)
{
	if (length > sizeof record->bytes - WIRE_FIELD_HEADER_BYTES ||
	    record->length > sizeof record->bytes - WIRE_FIELD_HEADER_BYTES - length)
		return;
	record->bytes[record->length] = tag;
	for (int i = 0; i < 4; i++)
		record->bytes[record->length + 1 + (size_t)i] = (uint8_t)(length >> (8 * i));
	if (length)
		memcpy(record->bytes + record->length + WIRE_FIELD_HEADER_BYTES, bytes, length);
	record->length += WIRE_FIELD_HEADER_BYTES + length;
}

static void put_u64(struct record *record, uint8_t tag, uint64_t number)
{
	uint8_t bytes[8];
	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t)(number >> (8 * i));
	put(record, tag, bytes, sizeof bytes);
}

/* Of the two files only what belongs into each counts: whoever is root in the guest can write them, and
 * a record must have the id it was asked for by. */
static bool is_asked(uint8_t tag)
{
	return (tag >= SESSION_NAME && tag <= SESSION_TAG) || tag == SESSION_CREATED || tag == SESSION_BOOT_ID;
}

/* What was asked for. The rest of the record always fits behind it. */
static void put_asked(struct record *record, const struct frame *session, size_t most)
{
	struct fields fields = fields_of(session);
	struct field field;
	uint64_t left_out = 0;
	while (fields_next(&fields, &field) > 0) {
		bool command = field.tag == SESSION_ARGUMENT || field.tag == SESSION_ENV;
		size_t length = field.length + WIRE_FIELD_HEADER_BYTES, room = sizeof record->bytes - STATE_ROOM - record->length;
		if (!is_asked(field.tag))
			continue;
		if (command && (left_out || length > most || length > room))
			left_out++;
		else if (length <= room)
			put(record, field.tag, field.bytes, field.length);
		if (command && !left_out)
			most -= length;
	}
	if (left_out)
		put_u64(record, SESSION_LEFT_OUT, left_out);
}

enum answer { ANSWER_GIVEN, ANSWER_SILENT, ANSWER_NO_KEEPER };

/* The keeper's own word. One that is launching answers when that is done. */
static enum answer ask_keeper(struct record *record, int sessions, const char *id, int64_t deadline)
{
	static struct message message;
	int keeper = keeper_connect(sessions, id);
	if (keeper == -1)
		return ANSWER_NO_KEEPER;
	message.operation = OPERATION_RECORD;
	ssize_t got = -1;
	if (keeper >= 0 && keeper_send(keeper, &message, 0, deadline))
		got = keeper_receive(keeper, &message, deadline);
	else if (keeper >= 0 && errno != EAGAIN)
		got = 0; /* it went between the two */
	if (keeper >= 0)
		close(keeper);
	if (got <= 0)
		return got == 0 ? ANSWER_NO_KEEPER : ANSWER_SILENT;
	size_t length = (size_t)got - MESSAGE_HEAD;
	if (length > sizeof record->bytes - record->length)
		return ANSWER_SILENT;
	memcpy(record->bytes + record->length, message.bytes, length);
	record->length += length;
	return ANSWER_GIVEN;
}

static const char *what_became(const struct frame *session)
{
	char then[64] = "", now[64] = "";
	if (read_file("/proc/sys/kernel/random/boot_id", now, sizeof now) > 0)
		now[strcspn(now, "\n")] = 0;
	session_text(session, SESSION_BOOT_ID, then, sizeof then);
	return strcmp(then, now) ? "the VM ended while the session ran" : "the session's keeper was killed";
}

/* The status as it was written last: all there is to know without the keeper's word. */
static void put_status(struct record *record, int folder, const struct frame *session, bool keeper_lives)
{
	static const char silent[] = "the session's keeper does not answer";
	struct frame status;
	struct fields fields;
	struct field field;
	char word[16] = "";
	session_read(folder, "status", &status);
	session_text(&status, SESSION_STATUS, word, sizeof word);
	bool final = !strcmp(word, "exited") || !strcmp(word, "failed");
	if (!word[0])
		keeper_lives = false; /* a removal has come so far */
	fields = fields_of(&status);
	while (fields_next(&fields, &field) > 0) {
		/* What a keeper last wrote while it lived is not true any more. */
		bool stale = field.tag == SESSION_LAST_ERROR || (field.tag == SESSION_STATUS && !keeper_lives);
		if (field.tag >= SESSION_STATUS && field.tag != SESSION_BOOT_ID && (final || !stale))
			put(record, field.tag, field.bytes, field.length);
	}
	if (!final && keeper_lives) {
		put(record, SESSION_LAST_ERROR, silent, strlen(silent));
	} else if (!final) {
		const char *why = what_became(session);
		put(record, SESSION_STATUS, "failed", 6);
		put(record, SESSION_LAST_ERROR, why, strlen(why));
	}
	frame_free(&status);
}

bool session_record(struct record *record, int sessions, const char *id, size_t most, int64_t deadline)
{
	struct frame session;
	struct stat status;
	char path[256];
	static const uint8_t sizes[SESSION_LOGS] = {SESSION_STDOUT_BYTES, SESSION_STDERR_BYTES};
	int folder = session_folder(sessions, id);
	record->length = 0;
	if (folder < 0)
		return false;
	put(record, SESSION_ID, id, SESSION_ID_LENGTH);
	session_read(folder, "session", &session);
	put_asked(record, &session, most);
	size_t start = record->length;
	enum answer answer = ask_keeper(record, sessions, id, deadline);
	if (answer != ANSWER_GIVEN)
		put_status(record, folder, &session, answer == ANSWER_SILENT);
	record->status = (struct frame){.payload = record->bytes + start, .length = (uint32_t)(record->length - start)};
	if (format_text(path, sizeof path, "%s/sessions/%s", state_folder(), id))
		put(record, SESSION_STATE_DIR, path, strlen(path));
	for (int i = 0; i < SESSION_LOGS; i++)
		if (fstatat(folder, session_logs[i], &status, AT_SYMLINK_NOFOLLOW) == 0)
			put_u64(record, sizes[i], (uint64_t)status.st_size);
	frame_free(&session);
	close(folder);
	return true;
}

static bool count_running(int sessions, const char *id, void *context)
{
	int keeper = keeper_connect(sessions, id);
	if (keeper >= 0)
		close(keeper);
	if (keeper != -1)
		++*(uint64_t *)context;
	return true;
}

static bool hang_up(int sessions, const char *id, void *context)
{
	static const struct message message = {.operation = OPERATION_HANG_UP};
	int keeper = keeper_connect(sessions, id);
	(void)sessions;
	(void)context;
	if (keeper >= 0) {
		keeper_send(keeper, &message, 0, 0);
		close(keeper);
	}
	return true;
}

void sessions_hang_up(void)
{
	int sessions = sessions_folder(false);
	if (sessions >= 0) {
		sessions_each(sessions, hang_up, NULL);
		close(sessions);
	}
}

uint64_t sessions_running(void)
{
	uint64_t count = 0;
	int sessions = sessions_folder(false);
	if (sessions >= 0) {
		sessions_each(sessions, count_running, &count);
		close(sessions);
	}
	return count;
}
