/* sshd without HostKey lines tries the usual names, and a newer one reads /etc/ssh/sshd_config.d: both find the
 * host's key. A configuration that lists other keys and includes nothing needs one line more.
 */
#include "sshd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base.h"

#define MOST_BYTES (1 << 20)

/* The rest of the line behind the keyword, or NULL when it is another line. */
static const char *argument_of(const char *line, const char *keyword)
{
	size_t length = strlen(keyword);
	line += strspn(line, " \t\r\f");
	if (strncasecmp(line, keyword, length) != 0 || !line[length] || !strchr(" \t=\"", line[length]))
		return NULL;
	line += length;
	return line + strspn(line, " \t=");
}

/* Whether the first word there, quoted or not, is this one. */
static bool is_word(const char *at, const char *word)
{
	size_t length = strlen(word);
	at += *at == '"';
	return !strncmp(at, word, length) && (!at[length] || strchr(" \t\r\"", at[length]));
}

static bool needs_line(char *text, const char *key)
{
	bool lists_keys = false;
	for (char *line = text, *next; line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = 0;
		const char *argument = argument_of(line, "Include");
		if (argument && strstr(argument, "sshd_config.d"))
			return false;
		argument = argument_of(line, "HostKey");
		if (argument && is_word(argument, key))
			return false;
		lists_keys = lists_keys || argument;
	}
	return lists_keys;
}

static int write_all(int fd, const char *bytes, size_t length)
{
	while (length) {
		ssize_t written = write(fd, bytes, length);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return -1;
		bytes += written;
		length -= (size_t)written;
	}
	return 0;
}

static int put_line(const char *config, const char *text, size_t length, const char *key, const struct stat *status)
{
	char temporary[512], line[512];
	if (!format_text(temporary, sizeof temporary, "%s.banger", config) ||
	    !format_text(line, sizeof line, "# the key that banger checks\nHostKey %s\n", key)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	unlink(temporary);
	int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	int ended = write_all(fd, line, strlen(line));
	if (ended == 0)
		ended = write_all(fd, text, length);
	if (ended == 0 && (fchown(fd, status->st_uid, status->st_gid) < 0 || fchmod(fd, status->st_mode & 07777) < 0))
		ended = -1;
	int why = errno;
	if (close(fd) < 0 && ended == 0) {
		ended = -1;
		why = errno;
	}
	if (ended == 0 && rename(temporary, config) == 0)
		return 1;
	if (ended == 0)
		why = errno;
	unlink(temporary);
	errno = why;
	return -1;
}

int sshd_offer_key(const char *config, const char *key)
{
	struct stat status;
	/* A link is left alone: what it leads to may be somebody else's to write. */
	if (lstat(config, &status) < 0)
		return errno == ENOENT || errno == ENOTDIR ? 0 : -1;
	if (!S_ISREG(status.st_mode) || status.st_size > MOST_BYTES)
		return 0;
	size_t size = (size_t)status.st_size + 1;
	char *text = malloc(size), *scratch = malloc(size);
	int changed = -1;
	if (!text || !scratch) {
		errno = ENOMEM;
	} else {
		ssize_t length = read_file(config, text, size);
		if (length >= 0) {
			memcpy(scratch, text, (size_t)length + 1);
			changed = needs_line(scratch, key) ? put_line(config, text, (size_t)length, key, &status) : 0;
		}
	}
	int why = errno;
	free(text);
	free(scratch);
	errno = why;
	return changed;
}
