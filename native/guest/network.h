/* The guest's side of the network and its name. Only ever called in a guest of our own. */
#ifndef NIMBUS_GUEST_NETWORK_H
#define NIMBUS_GUEST_NETWORK_H

#include <stddef.h>

#include "job.h"

/* Bring up lo. */
void network_start(void);
/* Address, default route and resolv.conf for eth0. 0, or -errno with what failed in `step`. */
int network_configure(const struct job_network *network, const char **step);
/* Host name, for the kernel and for programs that look themselves up. */
void network_set_hostname(const char *hostname);

#endif
