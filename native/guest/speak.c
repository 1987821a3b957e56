/* See speak.h. */
#include "speak.h"

#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#define BEAT_MS 1000
#define EXIT_AGAIN_MS 1000

static const char *refusal_text(enum refusal why)
{
	if (why == WRONG_NONCE)
		return "another session drives this guest";
	if (why == UNKNOWN_VERSION)
		return "this guest speaks version 1";
	return "the job cannot be read";
}

static size_t say_hello(const struct agent *agent, uint8_t *out, uint32_t attach_id, const uint8_t *nonce, bool looked)
{
	struct utsname kernel = {.release = ""};
	struct hello hello = {
		.state = agent->job.state,
		.flags = (uint8_t)((agent->prepared ? HELLO_PREPARED : 0) | (looked ? HELLO_LOOKED : 0)),
		.attach_id = attach_id,
		.kernel_ms = agent->kernel_ms,
		.init_ms = agent->init_ms,
	};

	(void)uname(&kernel);
	hello.kernel_release = kernel.release;
	memcpy(hello.nonce, nonce, NONCE_BYTES);
	for (int n = 0; n < STREAMS; n++) {
		hello.first[n] = agent->job.streams[n].acked;
		hello.end[n] = agent->job.streams[n].end;
	}
	return render_hello(out, &hello);
}

static uint32_t available_kib(void)
{
	char line[128];
	unsigned long kib = 0;
	FILE *file = fopen("/proc/meminfo", "re");

	while (file && fgets(line, sizeof line, file))
		if (sscanf(line, "MemAvailable: %lu", &kib) == 1) // NOLINT(cert-err34-c): the kernel's own number
			break;
	if (file)
		(void)fclose(file);
	return (uint32_t)kib;
}

static size_t say_heartbeat(struct agent *agent, uint8_t *out, uint64_t now_ms)
{
	struct sysinfo machine = {.mem_unit = 1};
	struct heartbeat beat = {
		.uptime_ms = now_ms,
		.state = agent->job.state,
		.round_trip_ms = agent->round_trip_ms,
		.lost_frames = agent->link.reader.lost,
		.mem_available_kib = available_kib(),
	};

	(void)sysinfo(&machine);
	beat.load_percent = (uint32_t)(machine.loads[0] * 100 >> SI_LOAD_SHIFT);
	beat.mem_total_kib = (uint32_t)(machine.totalram * machine.mem_unit / 1024);
	for (int n = 0; n < STREAMS; n++) {
		beat.acked[n] = agent->job.streams[n].acked;
		beat.end[n] = agent->job.streams[n].end;
	}
	agent->beat_at = now_ms + BEAT_MS;
	return render_heartbeat(out, &beat);
}

/* The streams take turns, so that neither starves the other. */
static size_t say_output(struct agent *agent, uint8_t *out)
{
	for (unsigned turn = 1; turn <= STREAMS; turn++) {
		unsigned n = (agent->last_stream + turn) % STREAMS;
		struct stream *stream = &agent->job.streams[n];
		uint64_t offset = stream->sent;
		size_t count = stream_sendable(stream, OUTPUT_MAX);

		if (count == 0)
			continue;
		agent->last_stream = n;
		stream_take(stream, out + OUT_DATA_AT, count);
		return render_out(out, n, offset, count);
	}
	return 0;
}

static bool all_is_sent(const struct agent *agent)
{
	for (int n = 0; n < STREAMS; n++)
		if (agent->job.streams[n].sent != agent->job.streams[n].end)
			return false;
	return true;
}

/* The next frame that is due, or 0. */
static size_t compose(struct agent *agent, uint8_t *out, uint64_t now_ms)
{
	size_t length;

	if (agent->refusal != NOT_REFUSED) {
		length = render_refused(out, agent->refusal, agent->refused_id, refusal_text(agent->refusal));
		agent->refusal = NOT_REFUSED;
		return length;
	}
	if (agent->want_look) {
		length = say_hello(agent, out, agent->look_id, agent->look_nonce, true);
		agent->want_look = false;
		agent->prepared = agent->prepared && agent->has_nonce; /* what was done for a look counts for no host */
		memset(agent->look_nonce, 0, NONCE_BYTES);
		return length;
	}
	if (!agent->attached)
		return 0;
	if (agent->want_hello) {
		agent->want_hello = false;
		return say_hello(agent, out, agent->attach_id, agent->nonce, false);
	}
	if (agent->want_started) {
		agent->want_started = false;
		return render_job_started(out, (uint32_t)agent->job.pid, (uint32_t)agent->job.started_ms);
	}
	if (now_ms >= agent->beat_at)
		return say_heartbeat(agent, out, now_ms);
	if (agent->want_bye) {
		agent->want_bye = false;
		return render_bye(out);
	}
	length = say_output(agent, out);
	if (length == 0 && agent->exit_at != 0 && now_ms >= agent->exit_at && all_is_sent(agent)) {
		agent->exit_at = now_ms + EXIT_AGAIN_MS;
		length = render_exit(out, &agent->job.report);
	}
	return length;
}

void speak(struct agent *agent, uint64_t now_ms)
{
	struct link *link = &agent->link;

	while (link_flush(link)) {
		size_t length = compose(agent, link->out, now_ms);

		if (length == 0)
			return;
		(void)link_send(link, length);
	}
}
