/* Looks users up by itself: libc's functions would ask daemons of the guest, which the agent does not trust.
 *
 * Lines longer than the buffer are skipped, files are read to their end, nothing grows.
 */
#include "users.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base.h"

#define LINE_MAX_BYTES 8192
#define MAX_FIELDS 7

/* The next line, split at colons, without its newline. The number of fields; 0 at the end. */
static int next_line(FILE *file, char *line, char *fields[MAX_FIELDS])
{
	while (fgets(line, LINE_MAX_BYTES, file)) {
		size_t length = strlen(line);
		if (length == 0)
			continue;
		if (line[length - 1] != '\n' && !feof(file)) {
			int skipped;
			while ((skipped = fgetc(file)) != EOF && skipped != '\n')
				;
			continue;
		}
		line[strcspn(line, "\n")] = 0;
		int count = 0;
		for (char *rest = line; rest && count < MAX_FIELDS;)
			fields[count++] = strsep(&rest, ":");
		return count;
	}
	return 0;
}

static bool parse_id(const char *text, uint32_t *id)
{
	uint64_t number;
	if (!parse_number(text, UINT32_MAX - 1, &number))
		return false;
	*id = (uint32_t)number;
	return true;
}

static bool find_passwd(struct account *account, const char *name, const uint32_t *uid)
{
	char line[LINE_MAX_BYTES], *fields[MAX_FIELDS];
	FILE *file = fopen("/etc/passwd", "re");
	bool found = false;
	while (file && !found && next_line(file, line, fields) == 7) {
		uint32_t line_uid, line_gid;
		if (!parse_id(fields[2], &line_uid) || !parse_id(fields[3], &line_gid))
			continue;
		if (name ? strcmp(fields[0], name) != 0 : line_uid != *uid)
			continue;
		found = true;
		account->uid = line_uid;
		account->gid = line_gid;
		format_text(account->name, sizeof account->name, "%s", fields[0]);
		if (fields[5][0] == '/')
			format_text(account->home, sizeof account->home, "%s", fields[5]);
		if (fields[6][0] == '/')
			format_text(account->shell, sizeof account->shell, "%s", fields[6]);
	}
	if (file)
		fclose(file);
	return found;
}

static bool find_group(const char *name, gid_t *gid)
{
	char line[LINE_MAX_BYTES], *fields[MAX_FIELDS];
	FILE *file = fopen("/etc/group", "re");
	bool found = false;
	for (int count; file && !found && (count = next_line(file, line, fields)) > 0;)
		found = count >= 3 && !strcmp(fields[0], name) && parse_id(fields[2], gid);
	if (file)
		fclose(file);
	return found || parse_id(name, gid);
}

static void find_memberships(struct account *account)
{
	char line[LINE_MAX_BYTES], *fields[MAX_FIELDS];
	FILE *file = fopen("/etc/group", "re");
	account->groups[account->group_count++] = account->gid;
	for (int count; file && (count = next_line(file, line, fields)) > 0;) {
		uint32_t gid;
		if (count < 4 || account->group_count == USER_MAX_GROUPS || !parse_id(fields[2], &gid) || gid == account->gid)
			continue;
		for (char *rest = fields[3], *member; (member = strsep(&rest, ","));) {
			if (!strcmp(member, account->name)) {
				account->groups[account->group_count++] = gid;
				break;
			}
		}
	}
	if (file)
		fclose(file);
}

bool user_find(struct account *account, const char *who)
{
	char name[256];
	memset(account, 0, sizeof *account);
	memcpy(account->home, "/", 2);
	memcpy(account->shell, "/bin/sh", 8);
	if (!format_text(name, sizeof name, "%s", *who ? who : "0"))
		return false;
	char *group = strchr(name, ':');
	if (group)
		*group++ = 0;
	uint32_t uid = 0;
	bool number = parse_id(name, &uid);
	if (!find_passwd(account, name, NULL) && !find_passwd(account, NULL, number ? &uid : &(uint32_t){UINT32_MAX})) {
		if (!number && strcmp(name, "root") != 0)
			return false;
		account->uid = uid;
		format_text(account->name, sizeof account->name, "%s", uid ? name : "root");
		if (uid == 0)
			memcpy(account->home, "/root", 6);
	}
	if (group)
		return find_group(group, &account->gid);
	find_memberships(account);
	return true;
}
