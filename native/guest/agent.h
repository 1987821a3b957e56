/* The guest's half of the guest link: serves one host at a time until the job's exit is safe with it. */
#ifndef NIMBUS_GUEST_AGENT_H
#define NIMBUS_GUEST_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#include "link.h"
#include "supervise.h"

struct agent {
	struct link link;
	struct supervised job;
	uint64_t born_ms; /* on CLOCK_BOOTTIME: 0 in a guest, the start of the process in a double */
	uint32_t kernel_ms;
	uint32_t init_ms;
	bool has_nonce;
	bool attached;
	int machine_id_fd; /* of identity_open; a double has none */
	bool prepared;     /* the last PREPARE was done, all of it */
	uint8_t nonce[NONCE_BYTES];
	uint32_t attach_id;
	uint32_t round_trip_ms;
	bool silence_told;
	uint64_t echo_at;  /* when the host was last heard */
	uint64_t beat_at;  /* when the next of each is due; 0: never */
	uint64_t exit_at;
	uint64_t leave_at;
	bool want_hello;
	bool want_look; /* a hello to a host that only looks, and whom it goes to */
	uint8_t look_nonce[NONCE_BYTES];
	uint32_t look_id;
	bool want_started;
	bool want_bye;
	enum refusal refusal;
	uint32_t refused_id;
	unsigned last_stream;
	uint8_t *pieces; /* of a job on its way */
	uint32_t pieces_total;
	uint32_t pieces_have;
};

/* CLOCK_BOOTTIME. */
uint64_t boot_clock_ms(void);
/* Make it ready; the link is open already. `vmstat_fd` as supervise_open takes it. 0 or -errno. */
int agent_open(struct agent *agent, bool guest, int vmstat_fd, uint64_t born_ms, uint64_t entered_ms);
/* Until the host has acknowledged the job's exit. 0 or -errno of what must not fail. */
int agent_run(struct agent *agent);

#endif
