/* The job's processes: start, signal, kill to the last one. */
#ifndef NIMBUS_GUEST_PROCESS_H
#define NIMBUS_GUEST_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "job.h"

struct process_start {
	pid_t pid;
	int out_fd; /* read ends, non-blocking */
	int err_fd;
	int code;           /* 126 or 127 where it did not start */
	char message[256];  /* and why */
};

/* Start the job in a session of its own, with `guest` true as one does in a guest of one's own (limits raised), else as
 * a process that must not outlive us. True when it runs; else `code` and `message` say why not. */
bool process_start(const struct job *job, bool guest, struct process_start *start);
/* SIGKILL to everything that came of the job. Call again until waitpid says that there is no child left. */
void process_kill_all(bool guest, pid_t group);

#endif
