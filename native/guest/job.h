/* The job as the host describes it: one binary value of length-prefixed fields (docs/guest-link.md, JOB). */
#ifndef NIMBUS_GUEST_JOB_H
#define NIMBUS_GUEST_JOB_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "message.h"

#define JOB_MAX (1U << 20)
#define HOSTNAME_BYTES_MAX 64

struct job_network {
	bool wanted;
	uint8_t prefix;
	struct in_addr address;
	struct in_addr gateway;
	struct in_addr nameserver; /* 0.0.0.0: none */
};

struct job {
	char **argv;
	char **env; /* NAME=value */
	const char *cwd;
	const char *user;
	const char *hostname;
	uint64_t timeout_ms; /* 0: none */
	uint64_t grace_ms;
	uint64_t wall_clock_ns; /* 0: leave the clock alone */
	uint8_t entropy[ENTROPY_BYTES];
	struct job_network network;
	void *memory; /* holds all of the above */
};

/* 0, -EINVAL for bytes that are no job, or -ENOMEM. After 0 the caller ends with job_free. */
int job_parse(const uint8_t *bytes, size_t length, struct job *job);
void job_free(struct job *job);

#endif
