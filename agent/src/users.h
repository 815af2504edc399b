/* Accounts of the guest, read from its own /etc/passwd and /etc/group. */
#ifndef BANGER_USERS_H
#define BANGER_USERS_H

#include <stdbool.h>
#include <sys/types.h>

#define USER_MAX_GROUPS 256

struct account {
	uid_t uid;
	gid_t gid;
	char name[256];
	char home[1024];
	char shell[1024];
	gid_t groups[USER_MAX_GROUPS];
	int group_count;
};

/* who: `name` or `uid`, each with `:group` or `:gid` behind it, or "" for root. As with docker: a uid that
 * nobody has gets gid 0 and `/`; a group that is named leaves no supplementary groups. False: no such one. */
bool user_find(struct account *account, const char *who);

#endif
