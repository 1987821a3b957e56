/* The VMM's own root: a small read-only tmpfs with what was bound into it and nothing else. */
#ifndef KEEPER_JAIL_H
#define KEEPER_JAIL_H
#include "kernel.h"
#include "options.h"

/* Called in the child, in a mount namespace of its own, still as root. Leaves the working folder at the new root. */
struct failure enter_jail(const struct options *options);

#endif
