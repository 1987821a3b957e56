/* Messages of the guest link, version 1, as values. The tables are in docs/guest-link.md; the host's half is
 * nimbus/wire/guestlink.py, and both are tested against tests/unit/wire/guestlink_vectors.json.
 *
 * Does no I/O. Parsers return false for a payload that is not exactly right and never read beyond it.
 */
#ifndef NIMBUS_GUEST_MESSAGE_H
#define NIMBUS_GUEST_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

#define LINK_VERSION 1
#define NONCE_BYTES 16
#define ENTROPY_BYTES 32
#define MACHINE_ID_BYTES 16
#define OUTPUT_MAX 65536
#define MESSAGE_MAX 1024
#define STREAMS 2 /* stdout, stderr: stream number - 1 */

enum message_type {
	ATTACH = 1,
	HELLO = 2,
	JOB = 3,
	JOB_STARTED = 4,
	OUT = 5,
	ACK = 6,
	CREDIT = 7,
	HEARTBEAT = 8,
	ECHO = 9,
	STOP = 10,
	EXIT = 11,
	EXIT_ACK = 12,
	REFUSED = 13,
	BYE = 14,
	PREPARE = 15,
};

enum guest_state { IDLE = 0, RUNNING = 1, STOPPING = 2, EXITED = 3 };
enum exit_reason { REASON_EXITED = 0, REASON_TIMEOUT = 1, REASON_STOPPED = 2, REASON_NOT_STARTED = 3 };
enum refusal { NOT_REFUSED = 0, WRONG_NONCE = 1, UNKNOWN_VERSION = 2, BAD_JOB = 3 };

/* Flags. A guest of before them reads zeros there and says none. */
enum attach_flag { ATTACH_LOOK = 1 };                     /* only say hello: nothing is taken over */
enum hello_flag { HELLO_PREPARED = 1, HELLO_LOOKED = 2 }; /* all of a PREPARE was done; it answers a look */

struct attach {
	uint16_t version;
	uint16_t flags;
	uint32_t id;
	uint8_t nonce[NONCE_BYTES];
	uint64_t next[STREAMS];
	uint64_t limit[STREAMS];
};

struct prepare {
	uint64_t wall_clock_ns; /* never 0 */
	uint8_t entropy[ENTROPY_BYTES];
	uint8_t machine_id[MACHINE_ID_BYTES];
};

struct hello {
	enum guest_state state;
	uint8_t flags;
	uint32_t attach_id;
	uint8_t nonce[NONCE_BYTES];
	uint32_t kernel_ms;
	uint32_t init_ms;
	uint64_t first[STREAMS];
	uint64_t end[STREAMS];
	const char *kernel_release;
};

struct heartbeat {
	uint64_t uptime_ms;
	enum guest_state state;
	uint32_t load_percent;
	uint32_t round_trip_ms;
	uint32_t mem_total_kib;
	uint32_t mem_available_kib;
	uint32_t lost_frames;
	uint64_t acked[STREAMS];
	uint64_t end[STREAMS];
};

struct exit_report {
	bool signalled;
	enum exit_reason reason;
	uint32_t value;
	uint16_t oom_kills; /* processes that the kernel killed for memory while the job ran; the most stands for more */
	uint64_t end[STREAMS];
	char message[MESSAGE_MAX];
};

bool parse_attach(const struct frame *frame, struct attach *attach);
bool parse_prepare(const struct frame *frame, struct prepare *prepare);
/* ACK and CREDIT: `stream` is 0 or 1. */
bool parse_offset(const struct frame *frame, unsigned *stream, uint64_t *offset);
/* STOP and ECHO. */
bool parse_number(const struct frame *frame, uint64_t *number);
/* A piece of a job: `bytes` of it at `offset` of `total`. */
bool parse_piece(const struct frame *frame, uint32_t *total, uint32_t *offset, const uint8_t **bytes, size_t *count);

/* Each writes one whole frame of at most FRAME_MAX bytes and returns its size. */
size_t render_hello(uint8_t *out, const struct hello *hello);
size_t render_job_started(uint8_t *out, uint32_t pid, uint32_t boot_ms);
size_t render_heartbeat(uint8_t *out, const struct heartbeat *beat);
size_t render_exit(uint8_t *out, const struct exit_report *report);
size_t render_refused(uint8_t *out, enum refusal why, uint32_t attach_id, const char *message);
size_t render_bye(uint8_t *out);
/* The `count` bytes of output are already at out + OUT_DATA_AT. */
#define OUT_DATA_AT (FRAME_HEADER_BYTES + 16)
size_t render_out(uint8_t *out, unsigned stream, uint64_t offset, size_t count);

#endif
