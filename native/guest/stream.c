/* See stream.h. */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static size_t at(uint64_t offset)
{
	return (size_t)(offset % STREAM_RING_BYTES);
}

static size_t smaller(uint64_t one, uint64_t other)
{
	return (size_t)(one < other ? one : other);
}

int stream_open(struct stream *stream)
{
	*stream = (struct stream){.fd = -1, .ring = malloc(STREAM_RING_BYTES)};
	return stream->ring ? 0 : -ENOMEM;
}

bool stream_has_room(const struct stream *stream)
{
	return stream->end - stream->acked < STREAM_RING_BYTES;
}

bool stream_fill(struct stream *stream)
{
	while (stream->fd >= 0 && stream_has_room(stream)) {
		size_t room = STREAM_RING_BYTES - (size_t)(stream->end - stream->acked);
		size_t straight = smaller(room, STREAM_RING_BYTES - at(stream->end));
		struct iovec parts[2] = {{stream->ring + at(stream->end), straight}, {stream->ring, room - straight}};
		ssize_t got = readv(stream->fd, parts, 2);

		if (got > 0) {
			stream->end += (uint64_t)got;
		} else if (got < 0 && errno == EINTR) {
			continue;
		} else if (got < 0 && errno == EAGAIN) {
			return true;
		} else {
			close(stream->fd);
			stream->fd = -1;
		}
	}
	return stream->fd < 0;
}

size_t stream_sendable(const struct stream *stream, size_t most)
{
	uint64_t stop = stream->limit < stream->end ? stream->limit : stream->end;

	return stop > stream->sent ? smaller(stop - stream->sent, most) : 0;
}

void stream_take(struct stream *stream, uint8_t *to, size_t count)
{
	size_t straight = smaller(count, STREAM_RING_BYTES - at(stream->sent));

	memcpy(to, stream->ring + at(stream->sent), straight);
	memcpy(to + straight, stream->ring, count - straight);
	stream->sent += count;
}

void stream_ack(struct stream *stream, uint64_t offset)
{
	if (offset > stream->acked && offset <= stream->sent)
		stream->acked = offset;
}

void stream_resume(struct stream *stream, uint64_t next, uint64_t limit)
{
	if (next < stream->acked)
		next = stream->acked;
	stream->sent = next < stream->end ? next : stream->end;
	stream->limit = limit;
}
