/* What the fuzz targets share. Each is one reader of the agent's, called without a socket; it takes any bytes,
 * checks what the reader promises with REQUIRE, and leaves nothing behind. HACKING.md, "Fuzzing". */
#ifndef BANGER_FUZZ_H
#define BANGER_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#define REQUIRE(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
			abort(); \
		} \
	} while (0)

/* The folder that is all a target may write to: a small tmpfs, while the rest of the tree is read-only. */
#define SANDBOX "/tmp"

/* A descriptor of a file in memory with these bytes, at its start; made anew with each call of the same slot. */
int bytes_as_file(int slot, const uint8_t *bytes, size_t length);

/* The path of that file, for readers that open by name. */
const char *path_of_bytes(int slot);

void enter_sandbox(void);

/* What stands in kill's place: signals of a target go nowhere, but never to 0, -1 or 1 either. */
int fuzz_kill(pid_t pid, int number);

/* Most changes to a header would be lost on its sum: right ones for all blocks that have tar's mark, in a copy
 * that the next call frees. */
const uint8_t *with_right_sums(const uint8_t *archive, size_t size);

/* Frees what command.c allocated: the agent never does, a process of its serves one request. */
void forget_allocations(void);

/* Rest of the input, cut into pieces. */
struct input {
	const uint8_t *at;
	size_t left;
};

uint8_t take_byte(struct input *input);

/* A length of two bytes, then so many bytes (or what is left). */
const uint8_t *take_piece(struct input *input, size_t *length);

void fuzz_frames(const uint8_t *data, size_t size);
void fuzz_exec(const uint8_t *data, size_t size);
void fuzz_small(const uint8_t *data, size_t size);
void fuzz_stream(const uint8_t *data, size_t size);
void fuzz_sessions(const uint8_t *data, size_t size);
void fuzz_records(const uint8_t *data, size_t size);
void fuzz_keeper(const uint8_t *data, size_t size);
void fuzz_view(const uint8_t *data, size_t size);
void fuzz_copy(const uint8_t *data, size_t size);
void fuzz_tar(const uint8_t *data, size_t size);
void fuzz_extract(const uint8_t *data, size_t size);
void fuzz_config(const uint8_t *data, size_t size);
void fuzz_ports(const uint8_t *data, size_t size);
void fuzz_probe(const uint8_t *data, size_t size);
void fuzz_users(const uint8_t *data, size_t size);
void fuzz_sshd(const uint8_t *data, size_t size);

#endif
