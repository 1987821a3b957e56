/* See account.h. Reads the files itself: a static libc cannot load the name service's modules. */
#include "account.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIELDS_MAX 7

static bool parse_id(const char *text, unsigned *id)
{
	char *end;
	unsigned long value;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	value = strtoul(text, &end, 10);
	if (*end != 0 || errno != 0 || value >= UINT_MAX)
		return false;
	*id = (unsigned)value;
	return true;
}

/* Cut a line at its colons. The number of fields. */
static size_t cut_fields(char *line, char *fields[FIELDS_MAX])
{
	size_t count = 0;

	line[strcspn(line, "\n")] = 0;
	while (count < FIELDS_MAX) {
		fields[count++] = line;
		line = strchr(line, ':');
		if (line == NULL)
			break;
		*line++ = 0;
	}
	return count;
}

static bool find_passwd(const char *user, bool numeric, unsigned uid, struct account *account)
{
	char line[1024];
	char *fields[FIELDS_MAX];
	FILE *file = fopen("/etc/passwd", "re");
	bool found = false;

	while (file && !found && fgets(line, sizeof line, file)) {
		unsigned entry_uid;
		unsigned gid;

		if (cut_fields(line, fields) < 6 || !parse_id(fields[2], &entry_uid) || !parse_id(fields[3], &gid))
			continue;
		if (numeric ? entry_uid != uid : strcmp(fields[0], user) != 0)
			continue;
		found = true;
		account->uid = entry_uid;
		account->gid = gid;
		(void)snprintf(account->name, sizeof account->name, "%s", fields[0]);
		(void)snprintf(account->home, sizeof account->home, "%s", fields[5]);
	}
	if (file)
		(void)fclose(file);
	return found;
}

static bool is_member(char *members, const char *name)
{
	char *rest = NULL;

	for (char *member = strtok_r(members, ",", &rest); member; member = strtok_r(NULL, ",", &rest))
		if (strcmp(member, name) == 0)
			return true;
	return false;
}

/* One pass over /etc/group: the gid of `wanted` where that is asked for, and the groups that `account` is in. */
static bool read_groups(const char *wanted, struct account *account)
{
	char line[4096];
	char *fields[FIELDS_MAX];
	FILE *file = fopen("/etc/group", "re");
	bool found = wanted == NULL;

	while (file && fgets(line, sizeof line, file)) {
		unsigned gid;

		if (cut_fields(line, fields) < 4 || !parse_id(fields[2], &gid))
			continue;
		if (wanted && strcmp(fields[0], wanted) == 0) {
			account->gid = gid;
			found = true;
		}
		if (!wanted && account->name[0] && account->group_count < GROUPS_MAX && is_member(fields[3], account->name))
			account->groups[account->group_count++] = gid;
	}
	if (file)
		(void)fclose(file);
	return found;
}

int account_find(const char *user, struct account *account)
{
	char name[64];
	const char *colon = strchr(user, ':');
	size_t length = colon ? (size_t)(colon - user) : strlen(user);
	unsigned id = 0;
	bool numeric;

	*account = (struct account){.home = "/"};
	if (length == 0 || length >= sizeof name)
		return -ENOENT;
	memcpy(name, user, length);
	name[length] = 0;
	numeric = parse_id(name, &id);
	if (!find_passwd(name, numeric, id, account)) {
		if (numeric) {
			account->uid = account->gid = id;
		} else if (strcmp(name, "root") != 0) { /* a guest without /etc/passwd still has a root: zeros */
			return -ENOENT;
		}
	}
	if (colon == NULL) {
		(void)read_groups(NULL, account);
		return 0;
	}
	if (parse_id(colon + 1, &id)) {
		account->gid = id;
		return 0;
	}
	return read_groups(colon + 1, account) ? 0 : -ENOENT;
}
