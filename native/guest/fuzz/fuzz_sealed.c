/* libFuzzer: frames with a right checksum and any content, and jobs of any content, which a plain fuzzer never finds. */
#include <stdlib.h>
#include <string.h>

#include "../job.h"
#include "../message.h"

static struct frame_reader reader;
static uint8_t sealed[FRAME_MAX];

static void read_job(const uint8_t *data, size_t size)
{
	struct job job;

	if (job_parse(data, size, &job) != 0)
		return;
	for (char **text = job.argv; *text; text++)
		if (strlen(*text) > size)
			abort();
	for (char **text = job.env; *text; text++)
		if (strlen(*text) > size)
			abort();
	if (strlen(job.cwd) + strlen(job.user) + strlen(job.hostname) > size || job.network.prefix > 32)
		abort();
	job_free(&job);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct frame frame;
	struct attach attach;
	struct prepare prepare;
	unsigned stream;
	uint64_t number;
	size_t room;
	size_t whole;

	read_job(data, size);
	if (size < 1 || size - 1 > FRAME_PAYLOAD_MAX)
		return 0;
	memcpy(sealed + FRAME_HEADER_BYTES, data + 1, size - 1);
	whole = frame_seal(sealed, data[0], (uint32_t)(size - 1));
	reader.length = reader.done = 0;
	memcpy(frame_reader_space(&reader, &room), sealed, whole);
	frame_reader_add(&reader, whole);
	if (!frame_reader_next(&reader, &frame) || frame.type != data[0] || frame.length != size - 1)
		abort();
	(void)parse_attach(&frame, &attach);
	if (parse_prepare(&frame, &prepare) && prepare.wall_clock_ns == 0)
		abort();
	(void)parse_number(&frame, &number);
	if (parse_offset(&frame, &stream, &number) && stream >= STREAMS)
		abort();
	if (frame_reader_next(&reader, &frame) || frame_reader_waits(&reader))
		abort();
	return 0;
}
