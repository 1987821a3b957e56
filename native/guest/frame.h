/* Frames of the guest link: bytes in, checked frames out, and back. docs/guest-link.md says what stands where.
 *
 * Does no I/O and allocates nothing. Used by link.c and, through it, by agent.c; fuzzed by fuzz/fuzz_frame.c.
 */
#ifndef NIMBUS_GUEST_FRAME_H
#define NIMBUS_GUEST_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER_BYTES 16
#define FRAME_PAYLOAD_MAX (65536 + 64)
#define FRAME_MAX (FRAME_HEADER_BYTES + FRAME_PAYLOAD_MAX)

struct frame {
	uint8_t type;
	uint8_t flags;
	uint32_t length;
	const uint8_t *payload; /* valid until the reader is touched again */
};

/* Hunts for the next magic with a right checksum; holds at most one frame. */
struct frame_reader {
	size_t length; /* bytes in the buffer */
	size_t done;   /* of them, those of the frame that was handed out last */
	uint32_t lost; /* frames with a wrong checksum, and halves given up */
	uint8_t buffer[FRAME_MAX];
};

/* CRC-32 as zlib computes it; start with 0. */
uint32_t crc32_update(uint32_t crc, const void *data, size_t length);

/* Where the next bytes of the stream go, and how many fit: never none. */
uint8_t *frame_reader_space(struct frame_reader *reader, size_t *room);
/* `count` bytes were put there. */
void frame_reader_add(struct frame_reader *reader, size_t count);
/* The next whole frame, or false when more bytes must come. */
bool frame_reader_next(struct frame_reader *reader, struct frame *frame);
/* True while the beginning of a frame waits for its rest. */
bool frame_reader_waits(const struct frame_reader *reader);
/* Forget it: what follows comes from another connection. */
void frame_reader_reset(struct frame_reader *reader);

/* Put the header before a payload of `length` bytes at frame + FRAME_HEADER_BYTES. The size of the whole. */
size_t frame_seal(uint8_t *frame, uint8_t type, uint32_t length);

uint16_t get_u16(const uint8_t *from);
uint32_t get_u32(const uint8_t *from);
uint64_t get_u64(const uint8_t *from);
void put_u16(uint8_t *to, uint16_t value);
void put_u32(uint8_t *to, uint32_t value);
void put_u64(uint8_t *to, uint64_t value);

#endif
