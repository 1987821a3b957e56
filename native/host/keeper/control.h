/* The keeper's socket: accept, answer, drop. */
#ifndef KEEPER_CONTROL_H
#define KEEPER_CONTROL_H
#include "state.h"

/* keeper.sock in the working folder, readable by nobody but root; -errno on failure. */
int open_control(void);

void accept_client(struct keeper *keeper);

/* Reads and answers one datagram of one client; closes it when it is gone, or too slow to take its answer. */
void serve_client(struct keeper *keeper, int *client);

#endif
