/* How the inner keeper comes to be, before its loop begins. */
#ifndef KEEPER_START_H
#define KEEPER_START_H
#include "watch.h"

/* From a fresh clone to a keeper with its timer armed, its socket open and its VMM cloned (not yet exec'd). */
struct failure start_keeper(struct keeper *keeper, int vmm_procs_fd);

/* 0 or -errno; NO_DEADLINE disarms. */
int arm_timer(int timer_fd, int64_t deadline_ns);

/* Closes what is open and marks it as not in use. */
void close_fd(int *fd);

#endif
