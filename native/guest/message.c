/* See message.h. */
#include "message.h"

#include <string.h>

#define ATTACH_BYTES 56
#define PREPARE_BYTES (8 + ENTROPY_BYTES + MACHINE_ID_BYTES)
#define HELLO_BYTES 64
#define HEARTBEAT_BYTES 64
#define EXIT_BYTES 24
#define REFUSED_BYTES 8

_Static_assert(EXIT_BYTES + MESSAGE_MAX < FRAME_PAYLOAD_MAX, "an exit fits a frame");

static size_t put_text(uint8_t *to, const char *text, size_t limit)
{
	size_t length = strnlen(text, limit);

	memcpy(to, text, length);
	return length;
}

bool parse_attach(const struct frame *frame, struct attach *attach)
{
	const uint8_t *at = frame->payload;

	if (frame->length != ATTACH_BYTES)
		return false;
	attach->version = get_u16(at);
	attach->flags = get_u16(at + 2);
	attach->id = get_u32(at + 4);
	memcpy(attach->nonce, at + 8, NONCE_BYTES);
	for (int n = 0; n < STREAMS; n++) {
		attach->next[n] = get_u64(at + 24 + 8 * n);
		attach->limit[n] = get_u64(at + 40 + 8 * n);
	}
	return true;
}

bool parse_prepare(const struct frame *frame, struct prepare *prepare)
{
	if (frame->length != PREPARE_BYTES)
		return false;
	prepare->wall_clock_ns = get_u64(frame->payload);
	memcpy(prepare->entropy, frame->payload + 8, ENTROPY_BYTES);
	memcpy(prepare->machine_id, frame->payload + 8 + ENTROPY_BYTES, MACHINE_ID_BYTES);
	return prepare->wall_clock_ns != 0;
}

bool parse_offset(const struct frame *frame, unsigned *stream, uint64_t *offset)
{
	if (frame->length != 16 || frame->payload[0] < 1 || frame->payload[0] > STREAMS)
		return false;
	*stream = frame->payload[0] - 1U;
	*offset = get_u64(frame->payload + 8);
	return true;
}

bool parse_number(const struct frame *frame, uint64_t *number)
{
	if (frame->length != 8)
		return false;
	*number = get_u64(frame->payload);
	return true;
}

bool parse_piece(const struct frame *frame, uint32_t *total, uint32_t *offset, const uint8_t **bytes, size_t *count)
{
	if (frame->length <= 8)
		return false;
	*total = get_u32(frame->payload);
	*offset = get_u32(frame->payload + 4);
	*bytes = frame->payload + 8;
	*count = frame->length - 8;
	return *offset <= *total && *count <= *total - *offset;
}

size_t render_hello(uint8_t *out, const struct hello *hello)
{
	uint8_t *at = out + FRAME_HEADER_BYTES;

	put_u16(at, LINK_VERSION);
	at[2] = (uint8_t)hello->state;
	at[3] = hello->flags;
	put_u32(at + 4, hello->attach_id);
	memcpy(at + 8, hello->nonce, NONCE_BYTES);
	put_u32(at + 24, hello->kernel_ms);
	put_u32(at + 28, hello->init_ms);
	for (int n = 0; n < STREAMS; n++) {
		put_u64(at + 32 + 8 * n, hello->first[n]);
		put_u64(at + 48 + 8 * n, hello->end[n]);
	}
	return frame_seal(out, HELLO, (uint32_t)(HELLO_BYTES + put_text(at + HELLO_BYTES, hello->kernel_release, 64)));
}

size_t render_job_started(uint8_t *out, uint32_t pid, uint32_t boot_ms)
{
	put_u32(out + FRAME_HEADER_BYTES, pid);
	put_u32(out + FRAME_HEADER_BYTES + 4, boot_ms);
	return frame_seal(out, JOB_STARTED, 8);
}

size_t render_heartbeat(uint8_t *out, const struct heartbeat *beat)
{
	uint8_t *at = out + FRAME_HEADER_BYTES;

	put_u64(at, beat->uptime_ms);
	put_u32(at + 8, (uint32_t)beat->state); /* one byte and three zeros */
	put_u32(at + 12, beat->load_percent);
	put_u32(at + 16, beat->round_trip_ms);
	put_u32(at + 20, beat->mem_total_kib);
	put_u32(at + 24, beat->mem_available_kib);
	put_u32(at + 28, beat->lost_frames);
	for (int n = 0; n < STREAMS; n++) {
		put_u64(at + 32 + 8 * n, beat->acked[n]);
		put_u64(at + 48 + 8 * n, beat->end[n]);
	}
	return frame_seal(out, HEARTBEAT, HEARTBEAT_BYTES);
}

size_t render_exit(uint8_t *out, const struct exit_report *report)
{
	uint8_t *at = out + FRAME_HEADER_BYTES;

	at[0] = report->signalled;
	at[1] = (uint8_t)report->reason;
	put_u16(at + 2, report->oom_kills);
	put_u32(at + 4, report->value);
	for (int n = 0; n < STREAMS; n++)
		put_u64(at + 8 + 8 * n, report->end[n]);
	return frame_seal(out, EXIT, (uint32_t)(EXIT_BYTES + put_text(at + EXIT_BYTES, report->message, MESSAGE_MAX)));
}

size_t render_refused(uint8_t *out, enum refusal why, uint32_t attach_id, const char *message)
{
	uint8_t *at = out + FRAME_HEADER_BYTES;

	put_u32(at, (uint32_t)why); /* one byte and three zeros */
	put_u32(at + 4, attach_id);
	return frame_seal(out, REFUSED, (uint32_t)(REFUSED_BYTES + put_text(at + REFUSED_BYTES, message, MESSAGE_MAX)));
}

size_t render_bye(uint8_t *out)
{
	return frame_seal(out, BYE, 0);
}

size_t render_out(uint8_t *out, unsigned stream, uint64_t offset, size_t count)
{
	uint8_t *at = out + FRAME_HEADER_BYTES;

	put_u64(at, stream + 1U); /* one byte and seven zeros */
	put_u64(at + 8, offset);
	return frame_seal(out, OUT, (uint32_t)(16 + count));
}
