/* Time, the log line, small file reads. No state but the log's target. */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool to_stderr;

int64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int until_ms(int64_t deadline)
{
	int64_t left = deadline - now_ms();
	if (left < 0)
		return 0;
	return left > 3600000 ? 3600000 : (int)left;
}

void sleep_ms(int milliseconds)
{
	poll(NULL, 0, milliseconds);
}

void log_to_stderr(void)
{
	to_stderr = true;
}

void say(const char *format, ...)
{
	char line[512] = "banger-agent: ";
	size_t start = strlen(line);
	va_list arguments;
	va_start(arguments, format);
	int written = vsnprintf(line + start, sizeof line - start - 1, format, arguments);
	va_end(arguments);
	if (written < 0)
		return;
	size_t length = strlen(line);
	/* Names in it may come from the image: keep the console's line one line of plain characters. */
	for (size_t i = start; i < length; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	line[length++] = '\n';
	/* Opened anew each time: a getty may have hung the console up. */
	int fd = to_stderr ? STDERR_FILENO : open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		fd = STDERR_FILENO;
	ssize_t ignored = write(fd, line, length);
	(void)ignored;
	if (fd != STDERR_FILENO)
		close(fd);
}

ssize_t read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		return -1;
	size_t length = 0;
	while (length < size - 1) {
		ssize_t got = read(fd, buffer + length, size - 1 - length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			int why = errno;
			close(fd);
			errno = why;
			return -1;
		}
		if (got == 0)
			break;
		length += (size_t)got;
	}
	close(fd);
	buffer[length] = 0;
	return (ssize_t)length;
}

int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return -1;
	size_t length = strlen(text);
	ssize_t written = write(fd, text, length);
	int why = errno;
	close(fd);
	errno = why;
	return written == (ssize_t)length ? 0 : -1;
}

bool format_text(char *buffer, size_t size, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int written = vsnprintf(buffer, size, format, arguments);
	va_end(arguments);
	return written >= 0 && (size_t)written < size;
}

bool parse_number(const char *text, uint64_t most, uint64_t *number)
{
	uint64_t value = 0;
	if (!*text)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return false;
		uint64_t digit = (uint64_t)(*text - '0');
		if (value > (most - digit) / 10)
			return false;
		value = value * 10 + digit;
	}
	if (value > most)
		return false;
	*number = value;
	return true;
}
