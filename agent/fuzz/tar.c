/* The tar reader alone: any bytes, in pieces of any size. */
#include "fuzz.h"

#include <string.h>

#include "../src/tar.h"

const uint8_t *with_right_sums(const uint8_t *archive, size_t size)
{
	static uint8_t *copy;
	free(copy);
	copy = malloc(size + 1);
	REQUIRE(copy);
	memcpy(copy, archive, size);
	for (size_t at = 0; at + TAR_BLOCK <= size; at += TAR_BLOCK) {
		uint8_t *block = copy + at;
		unsigned sum = 0;
		char text[9];
		if (memcmp(block + 257, "ustar", 5) != 0)
			continue;
		memset(block + 148, ' ', 8);
		for (size_t i = 0; i < TAR_BLOCK; i++)
			sum += block[i];
		snprintf(text, sizeof text, "%06o", sum);
		memcpy(block + 148, text, 7);
	}
	return copy;
}

struct pieces {
	struct tar_source source;
	struct input input;
	size_t most;
};

static ssize_t peek(struct tar_source *source, const uint8_t **bytes)
{
	struct pieces *pieces = (struct pieces *)source;
	*bytes = pieces->input.at;
	return (ssize_t)(pieces->input.left < pieces->most ? pieces->input.left : pieces->most);
}

static void skip(struct tar_source *source, size_t length)
{
	struct pieces *pieces = (struct pieces *)source;
	REQUIRE(length <= pieces->input.left && length <= pieces->most);
	pieces->input.at += length;
	pieces->input.left -= length;
}

static void check(const struct tar_reader *reader)
{
	const struct tar_entry *entry = &reader->entry;
	uint64_t end = 0, sum = 0;
	REQUIRE(memchr(entry->path, 0, sizeof entry->path) && memchr(entry->link, 0, sizeof entry->link));
	REQUIRE(entry->type >= TAR_FILE && entry->type <= TAR_FIFO && entry->mode <= 07777);
	REQUIRE(entry->size <= INT64_MAX && entry->nanoseconds < 1000000000);
	REQUIRE(entry->uid < UINT32_MAX && entry->gid < UINT32_MAX && entry->extent_count <= TAR_MAX_EXTENTS);
	for (size_t i = 0; i < entry->extent_count; i++) {
		REQUIRE(entry->extents[i].offset >= end);
		end = entry->extents[i].offset + entry->extents[i].length;
		sum += entry->extents[i].length;
		REQUIRE(end <= entry->size);
	}
	REQUIRE(!entry->sparse || sum == entry->stored);
}

void fuzz_tar(const uint8_t *data, size_t size)
{
	static struct tar_reader reader;
	struct pieces pieces = {.source = {.peek = peek, .skip = skip}, .input = {data, size}};
	uint8_t kind = take_byte(&pieces.input);
	enum tar_result result;
	if (!(kind & 4))
		pieces.input.at = with_right_sums(pieces.input.at, pieces.input.left);
	pieces.most = kind & 1 ? 65536 : 1 + (size_t)kind * 3;
	memset(&reader, 0, sizeof reader);
	reader.source = &pieces.source;
	while ((result = tar_next(&reader)) == TAR_ENTRY) {
		const uint8_t *bytes;
		uint64_t seen = 0;
		ssize_t got = 0;
		check(&reader);
		while (kind & 2 && (got = tar_data(&reader, &bytes)) > 0) {
			seen += (uint64_t)got;
			tar_took(&reader, (size_t)got);
		}
		REQUIRE(got < 0 || !(kind & 2) || seen == reader.entry.stored);
	}
	REQUIRE(result == TAR_END || reader.why);
	free(reader.entry.extents);
}
