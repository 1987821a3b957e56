/* From the initramfs to a root of the job's own. Only ever called as PID 1 of a guest. */
#ifndef NIMBUS_GUEST_BOOT_H
#define NIMBUS_GUEST_BOOT_H

#include <stdbool.h>

/* Devices, modules, the shared read-only disk under the VM's own one, and everything else that programs expect to be
 * mounted. 0, or -1 after saying what is missing. */
int boot_root(void);
/* True when the VMM gives a virtio device of that type. */
bool boot_has_device(unsigned long type);
/* The device of the port named `name`, in `path`. 0 or -1. */
int boot_find_port(const char *name, char *path, unsigned size);
/* Everything on disk, then out: the VMM takes the restart for an end. Does not return. */
_Noreturn void boot_leave(void);

#endif
