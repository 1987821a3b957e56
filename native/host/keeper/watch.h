/* The inner keeper: PID 1 of the VM's pid namespace, from the VMM's start to its ending. */
#ifndef KEEPER_WATCH_H
#define KEEPER_WATCH_H
#include "kernel.h"
#include "options.h"

/* Runs until the VMM has ended and that is on disk; returns the process' exit status. */
int run_keeper(const struct options *options, int report_fd, const struct leaf *leaf, int kill_fd);

#endif
