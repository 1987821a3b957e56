/* See job.h. Every length is checked against what is left before it is believed; fuzzed by fuzz/fuzz_job.c. */
#include "job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"

/* A place in the value, and one in the memory that receives its texts with their terminators. */
struct cursor {
	const uint8_t *at;
	size_t left;
	char *room;
	bool bad;
};

static const uint8_t *take(struct cursor *cursor, size_t count)
{
	const uint8_t *taken = cursor->at;

	if (cursor->bad || count > cursor->left) {
		cursor->bad = true;
		return NULL;
	}
	cursor->at += count;
	cursor->left -= count;
	return taken;
}

static uint32_t take_u32(struct cursor *cursor)
{
	const uint8_t *bytes = take(cursor, 4);

	return bytes ? get_u32(bytes) : 0;
}

static uint64_t take_u64(struct cursor *cursor)
{
	const uint8_t *bytes = take(cursor, 8);

	return bytes ? get_u64(bytes) : 0;
}

/* A text needs one byte more in memory than its bytes; its four bytes of length leave room for that. */
static char *take_text(struct cursor *cursor)
{
	uint32_t length = take_u32(cursor);
	const uint8_t *bytes = take(cursor, length);
	char *text = cursor->room;

	if (bytes == NULL || memchr(bytes, 0, length) != NULL) {
		cursor->bad = true;
		return NULL;
	}
	memcpy(text, bytes, length);
	text[length] = 0;
	cursor->room += length + 1;
	return text;
}

/* A list ended by NULL, its pointers in memory of `slots` places. The places used, or 0. */
static size_t take_list(struct cursor *cursor, char **list, size_t slots)
{
	uint32_t count = take_u32(cursor);

	if (cursor->bad || count > cursor->left / 4 || count >= slots) {
		cursor->bad = true;
		return 0;
	}
	for (uint32_t n = 0; n < count; n++)
		list[n] = take_text(cursor);
	list[count] = NULL;
	return count + 1U;
}

static void take_network(struct cursor *cursor, struct job_network *network)
{
	const uint8_t *wanted = take(cursor, 1);
	const uint8_t *bytes;

	*network = (struct job_network){.wanted = wanted && *wanted};
	if (!network->wanted)
		return;
	bytes = take(cursor, 13);
	if (bytes == NULL || *wanted != 1 || bytes[4] > 32) {
		cursor->bad = true;
		return;
	}
	memcpy(&network->address, bytes, 4);
	network->prefix = bytes[4];
	memcpy(&network->gateway, bytes + 5, 4);
	memcpy(&network->nameserver, bytes + 9, 4);
}

int job_parse(const uint8_t *bytes, size_t length, struct job *job)
{
	struct cursor cursor = {.at = bytes, .left = length};
	size_t slots = length / 4 + 2; /* each text has four bytes of length; each list an end */
	const uint8_t *entropy;
	size_t used;

	if (length == 0 || length > JOB_MAX)
		return -EINVAL;
	job->memory = calloc(1, slots * sizeof(char *) + length + 1);
	if (job->memory == NULL)
		return -ENOMEM;
	job->argv = job->memory;
	cursor.room = (char *)(job->argv + slots);
	used = take_list(&cursor, job->argv, slots);
	job->env = job->argv + used;
	take_list(&cursor, job->env, slots - used);
	job->cwd = take_text(&cursor);
	job->user = take_text(&cursor);
	job->timeout_ms = take_u64(&cursor);
	job->grace_ms = take_u64(&cursor);
	take_network(&cursor, &job->network);
	job->hostname = take_text(&cursor);
	job->wall_clock_ns = take_u64(&cursor);
	entropy = take(&cursor, ENTROPY_BYTES);
	if (entropy)
		memcpy(job->entropy, entropy, ENTROPY_BYTES);
	if (cursor.bad || cursor.left > 0 || job->argv[0] == NULL || job->argv[0][0] == 0 || job->hostname[0] == 0 ||
	    strlen(job->hostname) > HOSTNAME_BYTES_MAX) {
		job_free(job);
		return -EINVAL;
	}
	return 0;
}

void job_free(struct job *job)
{
	free(job->memory);
	memset(job, 0, sizeof *job);
}
