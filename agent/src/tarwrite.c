/* Makes tar headers: ustar, with pax records where ustar has no room. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "tar.h"

#define OCTAL_7 2097151ULL
#define OCTAL_11 8589934591ULL

struct header {
	char name[100], mode[8], uid[8], gid[8], size[12], time[12], sum[8], type, link[100];
	char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], padding[12];
};

static void octal(char *field, size_t digits, uint64_t number)
{
	field[digits] = 0;
	while (digits--) {
		field[digits] = (char)('0' + (number & 7));
		number >>= 3;
	}
}

static void seal(struct header *header)
{
	const uint8_t *bytes = (const uint8_t *)header;
	uint32_t sum = 0;
	memcpy(header->magic, "ustar", 6);
	memcpy(header->version, "00", 2);
	memset(header->sum, ' ', sizeof header->sum);
	for (size_t i = 0; i < TAR_BLOCK; i++)
		sum += bytes[i];
	octal(header->sum, 6, sum);
}

/* `<length> key=value\n`, the length counting itself. False when it does not fit. */
static bool add_record(char *records, size_t *length, const char *key, const char *value)
{
	size_t bare = strlen(key) + strlen(value) + 3;
	size_t total = bare + 1;
	char digits[24];
	for (;;) {
		size_t width = (size_t)snprintf(digits, sizeof digits, "%zu", total);
		if (bare + width == total)
			break;
		total = bare + width;
	}
	if (total >= TAR_MAX_RECORDS - *length)
		return false;
	*length += (size_t)snprintf(records + *length, TAR_MAX_RECORDS - *length, "%s %s=%s\n", digits, key, value);
	return true;
}

static bool add_number(char *records, size_t *length, const char *key, uint64_t number)
{
	char text[24];
	snprintf(text, sizeof text, "%llu", (unsigned long long)number);
	return add_record(records, length, key, text);
}

static bool add_time(char *records, size_t *length, const struct tar_entry *entry)
{
	char text[40];
	int64_t seconds = entry->seconds;
	uint32_t fraction = entry->nanoseconds;
	bool negative = seconds < 0;
	/* Before 1970 the fraction counts away from zero in decimal, and towards it in a timespec. */
	if (negative && fraction) {
		seconds++;
		fraction = 1000000000 - fraction;
	}
	uint64_t whole = negative ? (uint64_t)0 - (uint64_t)seconds : (uint64_t)seconds;
	snprintf(text, sizeof text, "%s%llu.%09u", negative ? "-" : "", (unsigned long long)whole, fraction);
	return add_record(records, length, "mtime", text);
}

static bool add_records(char *records, size_t *length, const struct tar_entry *entry, uint64_t stored, bool exact_times)
{
	bool good = true;
	if (entry->sparse)
		good = add_record(records, length, "GNU.sparse.major", "1") &&
		       add_record(records, length, "GNU.sparse.minor", "0") &&
		       add_record(records, length, "GNU.sparse.name", entry->path) &&
		       add_number(records, length, "GNU.sparse.realsize", entry->size);
	if (good && strlen(entry->path) > sizeof ((struct header *)0)->name)
		good = add_record(records, length, "path", entry->path);
	if (good && strlen(entry->link) > sizeof ((struct header *)0)->link)
		good = add_record(records, length, "linkpath", entry->link);
	if (good && stored > OCTAL_11)
		good = add_number(records, length, "size", stored);
	if (good && entry->uid > OCTAL_7)
		good = add_number(records, length, "uid", entry->uid);
	if (good && entry->gid > OCTAL_7)
		good = add_number(records, length, "gid", entry->gid);
	if (good && ((exact_times && entry->nanoseconds) || entry->seconds < 0 || (uint64_t)entry->seconds > OCTAL_11))
		good = add_time(records, length, entry);
	return good;
}

size_t tar_head(uint8_t *buffer, const struct tar_entry *entry, size_t map_bytes, bool exact_times)
{
	struct header *header = (struct header *)buffer;
	char *records = (char *)buffer + TAR_BLOCK;
	size_t length = 0;
	uint64_t stored = entry->stored + map_bytes;
	_Static_assert(sizeof(struct header) == TAR_BLOCK, "a header is one block");
	if (!add_records(records, &length, entry, stored, exact_times))
		return 0;
	if (length) {
		memset(header, 0, sizeof *header);
		memcpy(header->name, "./PaxHeaders/x", 15);
		octal(header->mode, 7, 0644);
		octal(header->uid, 7, 0);
		octal(header->gid, 7, 0);
		octal(header->size, 11, length);
		octal(header->time, 11, 0);
		header->type = 'x';
		seal(header);
		size_t padded = (length + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
		memset(records + length, 0, padded - length);
		length = TAR_BLOCK + padded;
		header = (struct header *)(buffer + length);
	}
	memset(header, 0, sizeof *header);
	memcpy(header->name, entry->path, strnlen(entry->path, sizeof header->name));
	memcpy(header->link, entry->link, strnlen(entry->link, sizeof header->link));
	octal(header->mode, 7, entry->mode & 07777);
	octal(header->uid, 7, entry->uid > OCTAL_7 ? 0 : entry->uid);
	octal(header->gid, 7, entry->gid > OCTAL_7 ? 0 : entry->gid);
	octal(header->size, 11, stored > OCTAL_11 ? 0 : stored);
	octal(header->time, 11, entry->seconds < 0 || (uint64_t)entry->seconds > OCTAL_11 ? 0 : (uint64_t)entry->seconds);
	octal(header->major, 7, entry->major & OCTAL_7);
	octal(header->minor, 7, entry->minor & OCTAL_7);
	header->type = entry->type;
	if (entry->nanoseconds) {
		char fraction[12];
		snprintf(fraction, sizeof fraction, ".%09u", entry->nanoseconds % 1000000000);
		memcpy(header->padding, fraction, 10);
	}
	seal(header);
	return length + TAR_BLOCK;
}

char *tar_map(const struct tar_entry *entry, size_t *length)
{
	size_t room = (entry->extent_count * 2 + 1) * 22 + TAR_BLOCK;
	char *map = calloc(1, room);
	if (!map)
		return NULL;
	size_t at = (size_t)snprintf(map, room, "%zu\n", entry->extent_count);
	for (size_t i = 0; i < entry->extent_count; i++)
		at += (size_t)snprintf(map + at, room - at, "%llu\n%llu\n", (unsigned long long)entry->extents[i].offset,
				       (unsigned long long)entry->extents[i].length);
	*length = (at + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
	return map;
}
