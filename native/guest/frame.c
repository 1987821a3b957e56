/* See frame.h. The checksum goes eight bytes at a time: under software emulation it would else be the bottleneck. */
#include "frame.h"

#include <string.h>

static const uint8_t MAGIC[4] = {'N', 'B', 'L', '1'};
static uint32_t crc_table[8][256];

__attribute__((constructor)) static void fill_crc_table(void)
{
	for (uint32_t n = 0; n < 256; n++) {
		uint32_t crc = n;
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (0xEDB88320U & (0U - (crc & 1)));
		crc_table[0][n] = crc;
	}
	for (uint32_t n = 0; n < 256; n++)
		for (int slice = 1; slice < 8; slice++)
			crc_table[slice][n] = crc_table[0][crc_table[slice - 1][n] & 0xFF] ^ (crc_table[slice - 1][n] >> 8);
}

uint16_t get_u16(const uint8_t *from)
{
	return (uint16_t)(from[0] | (from[1] << 8));
}

uint32_t get_u32(const uint8_t *from)
{
	return (uint32_t)from[0] | ((uint32_t)from[1] << 8) | ((uint32_t)from[2] << 16) | ((uint32_t)from[3] << 24);
}

uint64_t get_u64(const uint8_t *from)
{
	return (uint64_t)get_u32(from) | ((uint64_t)get_u32(from + 4) << 32);
}

void put_u16(uint8_t *to, uint16_t value)
{
	to[0] = (uint8_t)value;
	to[1] = (uint8_t)(value >> 8);
}

void put_u32(uint8_t *to, uint32_t value)
{
	put_u16(to, (uint16_t)value);
	put_u16(to + 2, (uint16_t)(value >> 16));
}

void put_u64(uint8_t *to, uint64_t value)
{
	put_u32(to, (uint32_t)value);
	put_u32(to + 4, (uint32_t)(value >> 32));
}

uint32_t crc32_update(uint32_t crc, const void *data, size_t length)
{
	const uint8_t *at = data;

	crc = ~crc;
	for (; length >= 8; at += 8, length -= 8) {
		uint32_t low = get_u32(at) ^ crc;
		uint32_t high = get_u32(at + 4);

		crc = crc_table[7][low & 0xFF] ^ crc_table[6][(low >> 8) & 0xFF] ^ crc_table[5][(low >> 16) & 0xFF] ^
		      crc_table[4][low >> 24] ^ crc_table[3][high & 0xFF] ^ crc_table[2][(high >> 8) & 0xFF] ^
		      crc_table[1][(high >> 16) & 0xFF] ^ crc_table[0][high >> 24];
	}
	for (; length > 0; at++, length--)
		crc = crc_table[0][(crc ^ *at) & 0xFF] ^ (crc >> 8);
	return ~crc;
}

static uint32_t frame_checksum(const uint8_t *frame, uint32_t length)
{
	return crc32_update(crc32_update(0, frame + 4, 8), frame + FRAME_HEADER_BYTES, length);
}

static void discard(struct frame_reader *reader, size_t count)
{
	reader->length -= count;
	memmove(reader->buffer, reader->buffer + count, reader->length);
}

/* Drop what cannot begin a frame: all before the next magic, or before its possible start at the very end. */
static void hunt(struct frame_reader *reader, size_t from)
{
	size_t at = from;

	for (; at < reader->length; at++) {
		size_t left = reader->length - at;
		size_t compared = left < sizeof MAGIC ? left : sizeof MAGIC;

		if (memcmp(reader->buffer + at, MAGIC, compared) == 0)
			break;
	}
	discard(reader, at);
}

uint8_t *frame_reader_space(struct frame_reader *reader, size_t *room)
{
	discard(reader, reader->done);
	reader->done = 0;
	*room = sizeof reader->buffer - reader->length;
	return reader->buffer + reader->length;
}

void frame_reader_add(struct frame_reader *reader, size_t count)
{
	reader->length += count;
}

bool frame_reader_next(struct frame_reader *reader, struct frame *frame)
{
	discard(reader, reader->done);
	reader->done = 0;
	for (hunt(reader, 0); reader->length >= FRAME_HEADER_BYTES; hunt(reader, 1)) {
		const uint8_t *header = reader->buffer;
		uint32_t length = get_u32(header + 8);

		if (get_u16(header + 6) != 0 || length > FRAME_PAYLOAD_MAX)
			continue;
		if (reader->length < FRAME_HEADER_BYTES + (size_t)length)
			return false;
		if (frame_checksum(header, length) != get_u32(header + 12)) {
			reader->lost++;
			continue;
		}
		*frame = (struct frame){header[4], header[5], length, header + FRAME_HEADER_BYTES};
		reader->done = FRAME_HEADER_BYTES + (size_t)length;
		return true;
	}
	return false;
}

bool frame_reader_waits(const struct frame_reader *reader)
{
	return reader->length > reader->done;
}

void frame_reader_reset(struct frame_reader *reader)
{
	if (frame_reader_waits(reader))
		reader->lost++;
	reader->length = reader->done = 0;
}

size_t frame_seal(uint8_t *frame, uint8_t type, uint32_t length)
{
	memcpy(frame, MAGIC, sizeof MAGIC);
	frame[4] = type;
	frame[5] = 0;
	put_u16(frame + 6, 0);
	put_u32(frame + 8, length);
	put_u32(frame + 12, frame_checksum(frame, length));
	return FRAME_HEADER_BYTES + (size_t)length;
}
