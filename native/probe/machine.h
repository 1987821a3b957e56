/* The one machine that the KVM probe makes: a vCPU, four mebibytes and a serial port that only listens. */
#ifndef NIMBUS_PROBE_MACHINE_H
#define NIMBUS_PROBE_MACHINE_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

#define MACHINE_BYTES (4u << 20)
#define SAID_MAX 256

struct machine {
    int vcpu;
    struct kvm_run *run;
    uint8_t *memory;
    char said[SAID_MAX]; /* what came out of the serial port, a string */
    size_t said_length;
    uint32_t exit_reason; /* KVM's own word for the last stop */
    int error;            /* -errno where KVM_RUN itself failed */
};

/* How a guest stopped. */
enum stop { STOP_RESET, STOP_TIME, STOP_SPEECH, STOP_FAULT };

/* Each returns 0 or -errno, and what it opened stays open until the process ends: that is soon. */
int load_image(const char *path, uint8_t *memory, uint64_t *entry);
int make_machine(int vm, size_t run_bytes, struct machine *machine);
int set_entry(const struct machine *machine, uint64_t entry);

/* Runs until the guest has said something that ends with `awaited` (NULL: nothing is awaited), resets, cannot go on,
 * or a signal told the vCPU to stop. */
enum stop run_until(struct machine *machine, const char *awaited);

/* The guest's counter: what is left of its loop. */
int read_counter(const struct machine *machine, uint64_t *left);

#endif
