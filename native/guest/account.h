/* Who the job runs as, from the guest's own /etc/passwd and /etc/group. */
#ifndef NIMBUS_GUEST_ACCOUNT_H
#define NIMBUS_GUEST_ACCOUNT_H

#include <stddef.h>
#include <sys/types.h>

#define GROUPS_MAX 64

struct account {
	uid_t uid;
	gid_t gid;
	gid_t groups[GROUPS_MAX];
	size_t group_count;
	char name[64]; /* empty for a number that has no name */
	char home[256];
};

/* `user` is a name, a uid, or either with `:group` behind it. 0, or -ENOENT for a name that there is not.
 * A uid without an entry gets the gid of the same number, never group 0. */
int account_find(const char *user, struct account *account);

#endif
