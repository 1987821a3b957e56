/* The child that becomes the VMM. */
#ifndef KEEPER_VMM_H
#define KEEPER_VMM_H
#include "kernel.h"
#include "options.h"

/* Never returns. `start_fd` (CLOEXEC) gets a struct failure without error right before exec, then end of file;
 * or one with the error that stopped it. `procs_fd` is -1 for a child that was born in its cgroup. End of file alone: the child was killed on the way. */
_Noreturn void become_vmm(const struct options *options, int procs_fd, int console_fd, int start_fd);

#endif
