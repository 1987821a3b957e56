/* What the guest says to its host, in order of importance. Part of agent.c's loop. */
#ifndef NIMBUS_GUEST_SPEAK_H
#define NIMBUS_GUEST_SPEAK_H

#include "agent.h"

/* Send what is due and what the host's credit allows, until it takes no more. */
void speak(struct agent *agent, uint64_t now_ms);

#endif
