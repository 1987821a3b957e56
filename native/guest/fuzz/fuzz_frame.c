/* libFuzzer: any bytes, in any pieces, through the frame reader and every parser of the guest.
 *
 * The first byte of the input says how large the pieces are. Beside memory errors, this looks for a reader that hands
 * out a frame it should not, or stands still with a full buffer.
 */
#include <stdlib.h>
#include <string.h>

#include "../message.h"

static struct frame_reader reader;

static void look(const struct frame *frame)
{
	struct attach attach;
	struct prepare prepare;
	unsigned stream;
	uint64_t number;
	uint32_t total;
	uint32_t offset;
	const uint8_t *bytes;
	size_t count;

	if (frame->length > FRAME_PAYLOAD_MAX)
		abort();
	(void)parse_attach(frame, &attach);
	if (parse_prepare(frame, &prepare) && prepare.wall_clock_ns == 0)
		abort();
	if (parse_offset(frame, &stream, &number) && stream >= STREAMS)
		abort();
	(void)parse_number(frame, &number);
	if (parse_piece(frame, &total, &offset, &bytes, &count) && count > 0 &&
	    ((uint64_t)offset + count > total || bytes[count - 1] != frame->payload[frame->length - 1]))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t piece = size ? 1 + data[0] * 7U : 1;
	struct frame frame;

	reader.length = reader.done = 0;
	reader.lost = 0;
	for (size_t done = 0; done < size;) {
		size_t room;
		uint8_t *space = frame_reader_space(&reader, &room);
		size_t count = size - done < piece ? size - done : piece;

		if (room == 0)
			abort();
		if (count > room)
			count = room;
		memcpy(space, data + done, count);
		frame_reader_add(&reader, count);
		done += count;
		while (frame_reader_next(&reader, &frame))
			look(&frame);
	}
	return 0;
}
