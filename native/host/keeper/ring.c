/* The console ring. Pure memory; tested under sanitizers in host/test. */
#include "ring.h"

#include <string.h>

void add_to_ring(struct ring *ring, const unsigned char *bytes, size_t size)
{
    if (size > RING_SIZE) { /* only the end can stay */
        ring->total += size - RING_SIZE;
        bytes += size - RING_SIZE;
        size = RING_SIZE;
    }
    size_t at = ring->total % RING_SIZE;
    size_t first = size < RING_SIZE - at ? size : RING_SIZE - at;
    memcpy(ring->bytes + at, bytes, first);
    memcpy(ring->bytes, bytes + first, size - first);
    ring->total += size;
}

size_t read_ring(const struct ring *ring, uint64_t offset, unsigned char *into, size_t max, uint64_t *start)
{
    uint64_t oldest = ring->total > RING_SIZE ? ring->total - RING_SIZE : 0;
    if (offset < oldest)
        offset = oldest;
    if (offset > ring->total)
        offset = ring->total;
    *start = offset;
    size_t size = ring->total - offset < max ? (size_t)(ring->total - offset) : max;
    size_t at = offset % RING_SIZE;
    size_t first = size < RING_SIZE - at ? size : RING_SIZE - at;
    memcpy(into, ring->bytes + at, first);
    memcpy(into + first, ring->bytes, size - first);
    return size;
}
