/* Tar archives as streams: headers read and made, nothing here knows files. ARCHITECTURE.md, "Copies". */
#ifndef BANGER_TAR_H
#define BANGER_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TAR_BLOCK 512
#define TAR_MAX_PATH 32767    /* bytes of a name, or of a link's target */
#define TAR_MAX_RECORDS 131072 /* bytes of one extended header */
#define TAR_MAX_EXTENTS 1048576
#define TAR_HEAD_BYTES (TAR_BLOCK + TAR_MAX_RECORDS + TAR_BLOCK)

enum tar_type {
	TAR_FILE = '0',
	TAR_LINK = '1', /* hard */
	TAR_SYMLINK = '2',
	TAR_CHARACTER = '3',
	TAR_BLOCK_DEVICE = '4',
	TAR_FOLDER = '5',
	TAR_FIFO = '6',
};

struct tar_extent {
	uint64_t offset;
	uint64_t length;
};

struct tar_entry {
	char type; /* enum tar_type, whatever the archive called it */
	uint32_t mode;
	uint64_t uid, gid;
	uint64_t stored; /* bytes in the archive, without a sparse file's map */
	uint64_t size;   /* bytes of the file, holes included */
	int64_t seconds;
	uint32_t nanoseconds;
	uint64_t major, minor;
	bool sparse; /* extents: where the stored bytes belong */
	struct tar_extent *extents;
	size_t extent_count;
	char path[TAR_MAX_PATH + 1];
	char link[TAR_MAX_PATH + 1];
};

/* Where an archive's bytes come from. */
struct tar_source {
	/* The next bytes, at least one; they stay until the next call. 0: the stream is at its end; -1: it broke. */
	ssize_t (*peek)(struct tar_source *source, const uint8_t **bytes);
	void (*skip)(struct tar_source *source, size_t length);
};

enum tar_result { TAR_ENTRY, TAR_END, TAR_BAD };

struct tar_reader {
	struct tar_source *source;
	struct tar_entry entry;
	const char *why; /* with TAR_BAD, and when tar_data gives -1 */
	uint64_t left;	 /* of the entry's stored bytes; with a map still unread, of both */
	uint64_t padding;
	size_t extents_room;
	uint8_t block[TAR_BLOCK];
	/* what extended headers say of the next entry */
	struct {
		bool path, link, size, uid, gid, time, real_size;
		bool sparse_major;
	} known;
	struct tar_entry next; /* its values */
	uint8_t records[TAR_MAX_RECORDS];
};

/* The next entry; what is left of the one before is skipped. Paths are as in the archive: nothing is checked
 * but that there is no NUL in them and that they are not too long. */
enum tar_result tar_next(struct tar_reader *reader);

/* The next piece of the entry's stored bytes: its length, 0 at their end, -1 when the archive is cut off. */
ssize_t tar_data(struct tar_reader *reader, const uint8_t **bytes);
void tar_took(struct tar_reader *reader, size_t length);

/* The entry's headers, into TAR_HEAD_BYTES of buffer; their length, 0 when a name is too long.
 * An entry's extents are not in it: tar_map makes what stands before the data of a sparse file, malloc'ed.
 * exact_times: fractions of seconds as every tar reads them, which costs 1 KiB; else in the header's padding. */
size_t tar_head(uint8_t *buffer, const struct tar_entry *entry, size_t map_bytes, bool exact_times);
char *tar_map(const struct tar_entry *entry, size_t *length);

#endif
