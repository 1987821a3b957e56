/* The last 64 KiB of the console, addressed by the offset of each byte since the VMM began. Pure. */
#ifndef KEEPER_RING_H
#define KEEPER_RING_H
#include <stddef.h>
#include <stdint.h>

enum { RING_SIZE = 64 * 1024 };

struct ring {
    uint64_t total; /* bytes ever added: the offset of the next one */
    unsigned char bytes[RING_SIZE];
};

void add_to_ring(struct ring *ring, const unsigned char *bytes, size_t size);

/* Copies up to `max` bytes from `offset` on, or from the oldest still held; *start says where they begin. */
size_t read_ring(const struct ring *ring, uint64_t offset, unsigned char *into, size_t max, uint64_t *start);

#endif
