/* What the host says, and what comes of it. Part of agent.c's loop. */
#ifndef NIMBUS_GUEST_HEAR_H
#define NIMBUS_GUEST_HEAR_H

#include "agent.h"

/* Act on one frame. What makes no sense is ignored: the host sees by our heartbeats that it was not heard. */
void hear(struct agent *agent, const struct frame *frame, uint64_t now_ms);

#endif
