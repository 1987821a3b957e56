/* One output stream of the job: a ring of what the host does not have safely yet, filled from the job's pipe.
 *
 * Offsets count from the job's first byte and never go back. acked <= sent <= end <= acked + STREAM_RING_BYTES.
 * When the ring is full the pipe is not read: the job waits, nothing is lost.
 */
#ifndef NIMBUS_GUEST_STREAM_H
#define NIMBUS_GUEST_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STREAM_RING_BYTES (1U << 20)

struct stream {
	uint64_t acked; /* the host has all below safely */
	uint64_t sent;  /* sent in this attach */
	uint64_t end;   /* read from the job */
	uint64_t limit; /* the host wants nothing from here on, for now */
	int fd;         /* the pipe's read end; -1 before the job and after its end of file */
	uint8_t *ring;
};

/* 0 or -ENOMEM. */
int stream_open(struct stream *stream);
bool stream_has_room(const struct stream *stream);
/* Read what the pipe has, up to the room. True when the pipe is empty for now or at its end, false when the ring is
 * full; at end of file the pipe is closed. */
bool stream_fill(struct stream *stream);
/* How many bytes may be sent now, at most `most`. */
size_t stream_sendable(const struct stream *stream, size_t most);
/* Copy the next `count` of them and count them as sent. */
void stream_take(struct stream *stream, uint8_t *to, size_t count);
/* The host has all below `offset` safely. */
void stream_ack(struct stream *stream, uint64_t offset);
/* A new attach: go on from `next`, as far as that is still here. */
void stream_resume(struct stream *stream, uint64_t next, uint64_t limit);

#endif
