/* The life of the guest's one job: started, timed, stopped, reaped, drained and reported.
 *
 * Knows nothing of the host or of frames. Times are milliseconds on the caller's clock; 0 stands for never.
 */
#ifndef NIMBUS_GUEST_SUPERVISE_H
#define NIMBUS_GUEST_SUPERVISE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "job.h"
#include "message.h"
#include "stream.h"

struct supervised {
	bool guest; /* we are PID 1 of a guest, not a process among others */
	int vmstat_fd;       /* -1: kills for memory are not counted */
	uint64_t oom_before; /* such kills when the job started */
	enum guest_state state;
	struct stream streams[STREAMS];
	struct exit_report report; /* whole once the state is EXITED */
	pid_t pid;
	uint64_t started_ms;
	uint64_t job_grace_ms;
	bool main_done;
	bool children_gone;
	bool killing;
	uint64_t timeout_at;
	uint64_t kill_at;    /* of what was asked to stop */
	uint64_t drain_at;   /* of what the job left behind */
	uint64_t give_up_at; /* of what cannot be killed */
};

/* `vmstat_fd` is whence kills for memory are read, or -1. 0 or -ENOMEM. */
int supervise_open(struct supervised *job, bool guest, int vmstat_fd);
/* Start it, or report why not. */
void supervise_start(struct supervised *job, const struct job *what, uint64_t now_ms);
/* It never began, for a reason of the guest's. */
void supervise_refuse(struct supervised *job, const char *why);
/* SIGTERM now, SIGKILL to everything after the grace; a second call can only shorten it. */
void supervise_stop(struct supervised *job, enum exit_reason reason, uint64_t grace_ms, uint64_t now_ms);
/* Reap whoever ended. */
void supervise_reap(struct supervised *job, uint64_t now_ms);
/* Read what the job printed, and do what is due. True when the state changed. */
bool supervise_tick(struct supervised *job, uint64_t now_ms);
/* When the next thing is due. */
uint64_t supervise_due(const struct supervised *job, uint64_t now_ms);

#endif
