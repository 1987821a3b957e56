/* How the inner keeper comes to be, before its loop begins. */
#ifndef KEEPER_START_H
#define KEEPER_START_H
#include "state.h"

/* From a fresh clone to a keeper with its timer armed, its socket open and its VMM cloned (not yet exec'd). */
struct failure start_keeper(struct keeper *keeper, const struct leaf *leaf);

#endif
