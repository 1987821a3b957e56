/* See hear.h. */
#include "hear.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "console.h"
#include "identity.h"
#include "network.h"

#define BYE_MS 200 /* for the good-bye to get out before we go */

static void refuse(struct agent *agent, enum refusal why, uint32_t attach_id)
{
	agent->refusal = why;
	agent->refused_id = attach_id;
}

/* The first host sets the nonce; nobody with another one drives this guest any more. The newest attach wins. One that
 * only looks leaves no trace: a guest in a template belongs to nobody. */
static void hear_attach(struct agent *agent, const struct attach *attach, uint64_t now_ms)
{
	bool looks = attach->flags & ATTACH_LOOK;

	if (!looks)
		agent->attached = false;
	if (attach->version != LINK_VERSION) {
		refuse(agent, UNKNOWN_VERSION, attach->id);
		return;
	}
	if (agent->has_nonce && memcmp(agent->nonce, attach->nonce, NONCE_BYTES) != 0) {
		say("a host with another session was refused");
		refuse(agent, WRONG_NONCE, attach->id);
		return;
	}
	if (looks) {
		memcpy(agent->look_nonce, attach->nonce, NONCE_BYTES);
		agent->look_id = attach->id;
		agent->want_look = true;
		return;
	}
	memcpy(agent->nonce, attach->nonce, NONCE_BYTES);
	agent->has_nonce = agent->attached = agent->want_hello = true;
	agent->attach_id = attach->id;
	agent->pieces_have = 0;
	agent->beat_at = now_ms + 1;
	agent->echo_at = now_ms;
	agent->silence_told = false;
	if (agent->job.state == EXITED)
		agent->exit_at = now_ms;
	else if (agent->job.state != IDLE)
		agent->want_started = true; /* the first time may have been lost with its connection */
	for (int n = 0; n < STREAMS; n++)
		stream_resume(&agent->job.streams[n], attach->next[n], attach->limit[n]);
}

/* What only a guest of our own may change. False where the job cannot have what it was promised. */
static bool configure_machine(struct agent *agent, const struct job *what)
{
	char why[128];
	const char *step = "";
	int error;

	(void)identity_set_clock(what->wall_clock_ns);
	(void)identity_add_entropy(what->entropy);
	network_set_hostname(what->hostname);
	if (!what->network.wanted)
		return true;
	error = network_configure(&what->network, &step);
	if (error == 0)
		return true;
	(void)snprintf(why, sizeof why, "the guest has no network (%s): %s", step, strerror(-error));
	supervise_refuse(&agent->job, why);
	return false;
}

static void start_job(struct agent *agent, uint64_t now_ms)
{
	struct job what;

	if (job_parse(agent->pieces, agent->pieces_total, &what) != 0) {
		refuse(agent, BAD_JOB, agent->attach_id);
	} else {
		if (!agent->job.guest || configure_machine(agent, &what))
			supervise_start(&agent->job, &what, now_ms);
		job_free(&what);
	}
	/* The environment may hold secrets: it lives on in the job alone. */
	explicit_bzero(agent->pieces, agent->pieces_total);
	free(agent->pieces);
	agent->pieces = NULL;
	agent->pieces_have = agent->pieces_total = 0;
	agent->want_started = agent->job.state == RUNNING;
	if (agent->job.state == EXITED)
		agent->exit_at = now_ms;
}

/* A double is no machine of its own: it takes the host's word and leaves the real one alone. */
static void hear_prepare(struct agent *agent, const struct frame *frame)
{
	struct prepare prepare;

	if (agent->job.state != IDLE || !parse_prepare(frame, &prepare))
		return;
	agent->prepared = !agent->job.guest || identity_take(agent->machine_id_fd, &prepare);
	explicit_bzero(&prepare, sizeof prepare);
}

static void hear_piece(struct agent *agent, const struct frame *frame, uint64_t now_ms)
{
	uint32_t total;
	uint32_t offset;
	const uint8_t *bytes;
	size_t count;

	if (agent->job.state != IDLE || !parse_piece(frame, &total, &offset, &bytes, &count))
		return;
	if (offset == 0) {
		uint8_t *fresh = total <= JOB_MAX ? realloc(agent->pieces, total) : NULL;

		if (fresh == NULL) {
			refuse(agent, BAD_JOB, agent->attach_id);
			return;
		}
		agent->pieces = fresh;
		agent->pieces_total = total;
		agent->pieces_have = 0;
	}
	if (offset != agent->pieces_have || total != agent->pieces_total)
		return; /* a piece was lost: the host will say it all again */
	memcpy(agent->pieces + offset, bytes, count);
	agent->pieces_have += (uint32_t)count;
	if (agent->pieces_have == total)
		start_job(agent, now_ms);
}

static void hear_credit(struct agent *agent, const struct frame *frame)
{
	unsigned n;
	uint64_t offset;

	if (!parse_offset(frame, &n, &offset))
		return;
	if (frame->type == ACK)
		stream_ack(&agent->job.streams[n], offset);
	else if (offset > agent->job.streams[n].limit)
		agent->job.streams[n].limit = offset;
}

static void hear_number(struct agent *agent, const struct frame *frame, uint64_t now_ms)
{
	uint64_t number;

	if (!parse_number(frame, &number))
		return;
	if (frame->type == STOP) {
		supervise_stop(&agent->job, REASON_STOPPED, number, now_ms);
		if (agent->job.state == EXITED && agent->exit_at == 0)
			agent->exit_at = now_ms;
	} else if (number <= now_ms) {
		agent->round_trip_ms = (uint32_t)(now_ms - number);
		agent->echo_at = now_ms;
		agent->silence_told = false;
	}
}

void hear(struct agent *agent, const struct frame *frame, uint64_t now_ms)
{
	struct attach attach;

	if (frame->flags != 0)
		return;
	if (frame->type == ATTACH) {
		if (parse_attach(frame, &attach))
			hear_attach(agent, &attach, now_ms);
		return;
	}
	if (frame->type == PREPARE) /* comes before its attach, so that the hello can tell of it */
		hear_prepare(agent, frame);
	if (!agent->attached)
		return;
	if (frame->type == JOB)
		hear_piece(agent, frame, now_ms);
	else if (frame->type == ACK || frame->type == CREDIT)
		hear_credit(agent, frame);
	else if (frame->type == STOP || frame->type == ECHO)
		hear_number(agent, frame, now_ms);
	else if (frame->type == EXIT_ACK && agent->job.state == EXITED && agent->leave_at == 0) {
		agent->want_bye = true;
		agent->leave_at = now_ms + BYE_MS;
		say("the exit is safe with the host");
	}
}
