/* The step from a jailer, which has ended, to the VMM that it left behind as the keeper's own child. */
#ifndef KEEPER_JAILER_H
#define KEEPER_JAILER_H
#include "state.h"

/* `status` is the jailer's, as waitpid gave it. Without error `vmm`, `vmm_pidfd` and `vmm_host_pid` are the VMM's;
 * it may be dead already, but nobody has reaped it. Any failure's step is `pid-file`. */
struct failure take_vmm(struct keeper *keeper, int status);

#endif
