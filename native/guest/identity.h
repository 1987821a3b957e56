/* What makes this machine itself and no copy of another: fresh randomness, the time, a machine id.
 *
 * A template's clones wake with one memory, so none of these may be used before the host has given them anew. Only ever
 * called as PID 1 of a guest; never touches the network or the host name, which come with the job.
 */
#ifndef NIMBUS_GUEST_IDENTITY_H
#define NIMBUS_GUEST_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>

#include "message.h"

/* Each says what failed; 0 or -errno. A clock of 0 is left alone. */
int identity_set_clock(uint64_t wall_clock_ns);
int identity_add_entropy(const uint8_t entropy[ENTROPY_BYTES]);
/* The machine id's file, on the VM's own disk from here on and in memory: a clone then writes 33 bytes and does not make
 * a file first, which took most of the time that it needed to be ready. -1 after saying why not. */
int identity_open(void);
/* True when all of it was done: only then may the host be told so. Again is harmless. */
bool identity_take(int machine_id_fd, const struct prepare *prepare);

#endif
