/* What every file of the agent may use: time, the one log line, small file reads. */
#ifndef BANGER_BASE_H
#define BANGER_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define AGENT_VERSION "1"

/* Milliseconds of CLOCK_MONOTONIC. */
int64_t now_ms(void);

/* Milliseconds until deadline, for poll: never negative. */
int until_ms(int64_t deadline);

void sleep_ms(int milliseconds);

/* One line, `banger-agent: …`, to the guest's console (to stderr where log_to_stderr was called). */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_to_stderr(void);

/* Up to size-1 bytes of a file, and a final NUL. The length, or -1 with errno. */
ssize_t read_file(const char *path, char *buffer, size_t size);

/* Write the text to an existing file (of /proc, say). 0, or -1 with errno. */
int write_file(const char *path, const char *text);

/* snprintf that says whether everything fitted. */
bool format_text(char *buffer, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A whole number in decimal; nothing before or behind it. */
bool parse_number(const char *text, uint64_t most, uint64_t *number);

#endif
