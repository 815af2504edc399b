/* Reads tar archives of whoever: ustar, pax, GNU's long names and sparse files. Everything is bounded. */
#include <stdlib.h>
#include <string.h>

#include "tar.h"

#define MAX_SECONDS (INT64_MAX / 4)

static enum tar_result bad(struct tar_reader *reader, const char *why)
{
	reader->why = why;
	return TAR_BAD;
}

/* Exactly length bytes. */
static bool take(struct tar_reader *reader, void *into, size_t length)
{
	uint8_t *at = into;
	while (length) {
		const uint8_t *bytes;
		ssize_t got = reader->source->peek(reader->source, &bytes);
		if (got <= 0)
			return false;
		size_t piece = (size_t)got < length ? (size_t)got : length;
		memcpy(at, bytes, piece);
		reader->source->skip(reader->source, piece);
		at += piece;
		length -= piece;
	}
	return true;
}

static bool pass(struct tar_reader *reader, uint64_t length)
{
	while (length) {
		const uint8_t *bytes;
		ssize_t got = reader->source->peek(reader->source, &bytes);
		if (got <= 0)
			return false;
		size_t piece = (uint64_t)got < length ? (size_t)got : (size_t)length;
		reader->source->skip(reader->source, piece);
		length -= piece;
	}
	return true;
}

/* Octal with spaces or NULs around it, or GNU's base 256 (never negative here). */
static bool number_of(const uint8_t *field, size_t width, uint64_t *number)
{
	uint64_t value = 0;
	size_t i = 0;
	if (field[0] & 0x80) {
		if (field[0] != 0x80)
			return false;
		for (i = 1; i < width; i++) {
			if (value >> 55)
				return false;
			value = value << 8 | field[i];
		}
		*number = value;
		return true;
	}
	while (i < width && field[i] == ' ')
		i++;
	for (; i < width && field[i] >= '0' && field[i] <= '7'; i++)
		value = value << 3 | (uint64_t)(field[i] - '0');
	for (; i < width; i++)
		if (field[i] != ' ' && field[i] != 0)
			return false;
	*number = value;
	return true;
}

static bool is_zero(const uint8_t *block)
{
	for (size_t i = 0; i < TAR_BLOCK; i++)
		if (block[i])
			return false;
	return true;
}

static bool sum_is_right(const uint8_t *block)
{
	uint64_t said;
	uint32_t sum = 8 * ' ';
	int32_t with_signs = 8 * ' '; /* what some old ones wrote */
	if (!number_of(block + 148, 8, &said))
		return false;
	for (size_t i = 0; i < TAR_BLOCK; i++) {
		if (i >= 148 && i < 156)
			continue;
		sum += block[i];
		with_signs += (int8_t)block[i];
	}
	return said == sum || (with_signs >= 0 && said == (uint32_t)with_signs);
}

static bool text_of(char *into, const uint8_t *bytes, size_t length)
{
	if (length > TAR_MAX_PATH || memchr(bytes, 0, length))
		return false;
	memcpy(into, bytes, length);
	into[length] = 0;
	return true;
}

static bool decimal(const uint8_t *bytes, size_t length, uint64_t *number)
{
	uint64_t value = 0;
	if (!length || length > 20)
		return false;
	for (size_t i = 0; i < length; i++) {
		if (bytes[i] < '0' || bytes[i] > '9' || value > (UINT64_MAX - 9) / 10)
			return false;
		value = value * 10 + (uint64_t)(bytes[i] - '0');
	}
	*number = value;
	return true;
}

static bool time_of(const uint8_t *bytes, size_t length, struct tar_entry *entry)
{
	bool negative = length && bytes[0] == '-';
	uint64_t whole;
	uint32_t fraction = 0;
	if (negative) {
		bytes++;
		length--;
	}
	const uint8_t *dot = memchr(bytes, '.', length);
	size_t digits = dot ? (size_t)(dot - bytes) : length;
	if (!decimal(bytes, digits, &whole) || whole > MAX_SECONDS)
		return false;
	for (size_t i = digits + 1, scale = 100000000; i < length; i++, scale /= 10) {
		if (bytes[i] < '0' || bytes[i] > '9')
			return false;
		fraction += (uint32_t)(scale * (size_t)(bytes[i] - '0'));
	}
	entry->seconds = negative ? -(int64_t)whole : (int64_t)whole;
	entry->nanoseconds = fraction;
	if (negative && fraction) {
		entry->seconds--;
		entry->nanoseconds = 1000000000 - fraction;
	}
	return true;
}

static bool is_key(const uint8_t *key, size_t length, const char *name)
{
	return length == strlen(name) && !memcmp(key, name, length);
}

static const char *take_record(struct tar_reader *reader, const uint8_t *key, size_t key_length, const uint8_t *value,
			       size_t length)
{
	struct tar_entry *next = &reader->next;
	uint64_t number;
	/* GNU.sparse.name comes before or behind path, and is the one that counts. */
	if (is_key(key, key_length, "path") && !reader->known.sparse_major)
		return (reader->known.path = text_of(next->path, value, length)) ? NULL : "a name that is too long, or has a NUL in it";
	if (is_key(key, key_length, "GNU.sparse.name"))
		return (reader->known.path = reader->known.sparse_major = text_of(next->path, value, length)) ? NULL : "a malformed name";
	if (is_key(key, key_length, "linkpath"))
		return (reader->known.link = text_of(next->link, value, length)) ? NULL : "a link that is too long, or has a NUL in it";
	if (is_key(key, key_length, "size"))
		return (reader->known.size = decimal(value, length, &next->stored)) ? NULL : "a malformed size";
	if (is_key(key, key_length, "uid"))
		return (reader->known.uid = decimal(value, length, &next->uid)) ? NULL : "a malformed uid";
	if (is_key(key, key_length, "gid"))
		return (reader->known.gid = decimal(value, length, &next->gid)) ? NULL : "a malformed gid";
	if (is_key(key, key_length, "mtime"))
		return (reader->known.time = time_of(value, length, next)) ? NULL : "a malformed time";
	if (is_key(key, key_length, "GNU.sparse.realsize"))
		return (reader->known.real_size = decimal(value, length, &next->size)) ? NULL : "a malformed size";
	if (is_key(key, key_length, "GNU.sparse.major")) {
		if (!decimal(value, length, &number) || number != 1)
			return "a sparse file in a format other than 1.0";
		next->sparse = true;
	}
	if (is_key(key, key_length, "GNU.sparse.map") || is_key(key, key_length, "GNU.sparse.numblocks"))
		return "a sparse file in a format other than 1.0";
	return NULL;
}

static const char *take_records(struct tar_reader *reader, size_t length)
{
	const uint8_t *at = reader->records, *end = at + length;
	while (at < end) {
		const uint8_t *space = memchr(at, ' ', (size_t)(end - at));
		uint64_t size;
		if (!space || !decimal(at, (size_t)(space - at), &size) || size > (uint64_t)(end - at) ||
		    size < (uint64_t)(space - at) + 3 || at[size - 1] != '\n')
			return "a malformed extended header";
		const uint8_t *stop = at + size - 1;
		const uint8_t *equals = memchr(space + 1, '=', (size_t)(stop - space - 1));
		if (!equals)
			return "a malformed extended header";
		const char *why = take_record(reader, space + 1, (size_t)(equals - space - 1), equals + 1, (size_t)(stop - equals - 1));
		if (why)
			return why;
		at = stop + 1;
	}
	return NULL;
}

static uint64_t padding_of(uint64_t size)
{
	return (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK;
}

/* A header that says something of the next one. */
static const char *take_extension(struct tar_reader *reader, char type)
{
	uint64_t size;
	if (!number_of(reader->block + 124, 12, &size))
		return "a malformed size";
	if (type == 'g')
		return pass(reader, size) && pass(reader, padding_of(size)) ? NULL : "it is cut off";
	if (size > TAR_MAX_RECORDS)
		return "a name or an extended header that is too long";
	if (!take(reader, reader->records, (size_t)size) || !pass(reader, padding_of(size)))
		return "it is cut off";
	if (type == 'x')
		return take_records(reader, (size_t)size);
	size_t length = strnlen((const char *)reader->records, (size_t)size);
	bool good = text_of(type == 'L' ? reader->next.path : reader->next.link, reader->records, length);
	*(type == 'L' ? &reader->known.path : &reader->known.link) = good;
	return good ? NULL : "a name that is too long";
}

static bool add_extent(struct tar_reader *reader, uint64_t offset, uint64_t length)
{
	struct tar_entry *entry = &reader->entry;
	uint64_t before = 0;
	if (entry->extent_count) {
		const struct tar_extent *last = &entry->extents[entry->extent_count - 1];
		before = last->offset + last->length;
	}
	if (offset < before || offset > entry->size || length > entry->size - offset)
		return false;
	if (entry->extent_count == reader->extents_room) {
		size_t room = reader->extents_room ? reader->extents_room * 2 : 64;
		struct tar_extent *more = room <= TAR_MAX_EXTENTS ? realloc(entry->extents, room * sizeof *more) : NULL;
		if (!more)
			return false;
		entry->extents = more;
		reader->extents_room = room;
	}
	entry->extents[entry->extent_count++] = (struct tar_extent){.offset = offset, .length = length};
	return true;
}

/* One number of the map that stands before the data, with its newline. */
static bool map_number(struct tar_reader *reader, uint64_t *number)
{
	uint8_t digits[20];
	for (size_t length = 0; length <= sizeof digits; length++) {
		uint8_t byte;
		if (!reader->left || !take(reader, &byte, 1))
			return false;
		reader->left--;
		if (byte == '\n')
			return decimal(digits, length, number);
		if (length < sizeof digits)
			digits[length] = byte;
	}
	return false;
}

static const char *take_map(struct tar_reader *reader)
{
	uint64_t count, before = reader->left, sum = 0;
	if (!map_number(reader, &count) || count > TAR_MAX_EXTENTS / 2)
		return "a malformed map of a sparse file";
	for (uint64_t i = 0; i < count; i++) {
		uint64_t offset, length;
		if (!map_number(reader, &offset) || !map_number(reader, &length) || !add_extent(reader, offset, length))
			return "a malformed map of a sparse file";
		sum += length;
	}
	uint64_t rest = padding_of(before - reader->left);
	if (rest > reader->left || !pass(reader, rest))
		return "it is cut off";
	reader->left -= rest;
	return sum == reader->left ? NULL : "a map that does not fit its sparse file";
}

/* The older format of GNU tar: the map is in the header, and in blocks behind it. */
static const char *take_old_map(struct tar_reader *reader)
{
	const uint8_t *at = reader->block + 386;
	uint64_t offset, length, sum = 0;
	size_t slots = 4;
	bool more = reader->block[482];
	if (!number_of(reader->block + 483, 12, &reader->entry.size))
		return "a malformed size";
	for (;;) {
		for (size_t i = 0; i < slots && at[i * 24]; i++) {
			if (!number_of(at + i * 24, 12, &offset) || !number_of(at + i * 24 + 12, 12, &length) ||
			    !add_extent(reader, offset, length))
				return "a malformed map of a sparse file";
			sum += length;
		}
		if (!more)
			return sum == reader->left ? NULL : "a map that does not fit its sparse file";
		if (!take(reader, reader->block, TAR_BLOCK))
			return "it is cut off";
		at = reader->block;
		slots = 21;
		more = at[504];
	}
}

/* The name, and before it ustar's prefix where that is there. GNU's older format has times in its place. */
static void take_name(struct tar_entry *entry, const uint8_t *block)
{
	size_t length = 0;
	if (!memcmp(block + 257, "ustar\0", 6) && block[345]) {
		length = strnlen((const char *)block + 345, 155);
		memcpy(entry->path, block + 345, length);
		entry->path[length++] = '/';
	}
	size_t name = strnlen((const char *)block, 100);
	memcpy(entry->path + length, block, name);
	entry->path[length + name] = 0;
}

static uint32_t fraction_of(const uint8_t *padding)
{
	uint32_t value = 0;
	if (padding[0] != '.' || padding[10])
		return 0;
	for (size_t i = 1; i < 10; i++) {
		if (padding[i] < '0' || padding[i] > '9')
			return 0;
		value = value * 10 + (uint32_t)(padding[i] - '0');
	}
	return value;
}

static const char *take_header(struct tar_reader *reader)
{
	struct tar_entry *entry = &reader->entry, *next = &reader->next;
	const uint8_t *block = reader->block;
	uint64_t mode, seconds;
	char type = (char)block[156];
	if (!number_of(block + 100, 8, &mode) || !number_of(block + 108, 8, &entry->uid) ||
	    !number_of(block + 116, 8, &entry->gid) || !number_of(block + 124, 12, &entry->stored) ||
	    !number_of(block + 136, 12, &seconds) || seconds > MAX_SECONDS)
		return "a malformed number in a header";
	entry->mode = (uint32_t)mode & 07777;
	entry->seconds = (int64_t)seconds;
	entry->nanoseconds = fraction_of(block + 500);
	take_name(entry, block);
	size_t link = strnlen((const char *)block + 157, 100);
	memcpy(entry->link, block + 157, link);
	entry->link[link] = 0;
	if (reader->known.path)
		memcpy(entry->path, next->path, strlen(next->path) + 1);
	if (reader->known.link)
		memcpy(entry->link, next->link, strlen(next->link) + 1);
	if (reader->known.size)
		entry->stored = next->stored;
	if (reader->known.uid)
		entry->uid = next->uid;
	if (reader->known.gid)
		entry->gid = next->gid;
	if (reader->known.time) {
		entry->seconds = next->seconds;
		entry->nanoseconds = next->nanoseconds;
	}
	if (entry->stored > INT64_MAX || entry->uid >= UINT32_MAX || entry->gid >= UINT32_MAX)
		return "a number that is too big";
	entry->size = entry->stored;
	entry->type = type == 0 || type == '7' || type == 'S' ? TAR_FILE : type;
	if (entry->type == TAR_CHARACTER || entry->type == TAR_BLOCK_DEVICE) {
		if (!number_of(block + 329, 8, &entry->major) || !number_of(block + 337, 8, &entry->minor))
			return "a malformed device";
	}
	/* Before there were folders in headers, a slash at the end of a name meant one. */
	if (type == 0 && entry->path[0] && entry->path[strlen(entry->path) - 1] == '/')
		entry->type = TAR_FOLDER;
	if (entry->type < TAR_FILE || entry->type > TAR_FIFO)
		return "an entry of an unknown kind";
	reader->left = entry->stored;
	reader->padding = padding_of(entry->stored);
	/* Links and folders have no data, whatever their size says; tar of old wrote that of a link's target. */
	if (entry->type == TAR_SYMLINK || entry->type == TAR_FOLDER || (entry->type == TAR_LINK && !reader->known.size))
		entry->stored = reader->left = reader->padding = 0;
	entry->sparse = entry->type == TAR_FILE && (type == 'S' || next->sparse);
	if (!entry->sparse)
		return NULL;
	if (type != 'S' && !reader->known.real_size)
		return "a sparse file without a size";
	if (type != 'S')
		entry->size = next->size;
	if (entry->size > INT64_MAX)
		return "a number that is too big";
	const char *why = type == 'S' ? take_old_map(reader) : take_map(reader);
	entry->stored = reader->left;
	return why;
}

enum tar_result tar_next(struct tar_reader *reader)
{
	if (!pass(reader, reader->left) || !pass(reader, reader->padding))
		return bad(reader, "it is cut off");
	reader->left = reader->padding = 0;
	memset(&reader->known, 0, sizeof reader->known);
	reader->next.sparse = false;
	reader->entry.extent_count = 0;
	reader->entry.major = reader->entry.minor = 0;
	for (int extensions = 0; extensions < 16; extensions++) {
		if (!take(reader, reader->block, TAR_BLOCK))
			return bad(reader, "it is cut off");
		if (is_zero(reader->block))
			return TAR_END;
		if (!sum_is_right(reader->block))
			return bad(reader, "it is no tar archive, or damaged");
		char type = (char)reader->block[156];
		bool extension = type == 'x' || type == 'g' || type == 'L' || type == 'K';
		const char *why = extension ? take_extension(reader, type) : take_header(reader);
		if (why)
			return bad(reader, why);
		if (!extension)
			return TAR_ENTRY;
	}
	return bad(reader, "too many extended headers for one entry");
}

ssize_t tar_data(struct tar_reader *reader, const uint8_t **bytes)
{
	if (!reader->left)
		return 0;
	ssize_t got = reader->source->peek(reader->source, bytes);
	if (got <= 0) {
		reader->why = "it is cut off";
		return -1;
	}
	return (uint64_t)got < reader->left ? got : (ssize_t)reader->left;
}

void tar_took(struct tar_reader *reader, size_t length)
{
	reader->source->skip(reader->source, length);
	reader->left -= length;
}
