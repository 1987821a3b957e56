/* See supervise.h. */
#include "supervise.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "console.h"
#include "oom.h"
#include "process.h"

#define DRAIN_MS 2000    /* for children that outlive the job and hold its pipes */
#define GIVE_UP_MS 10000 /* for processes that even SIGKILL does not end: stuck in the kernel */
#define KILL_AGAIN_MS 20 /* orphans of the killed become ours one generation at a time */
#define LONG_MS (UINT64_MAX / 4)

static uint64_t after(uint64_t now_ms, uint64_t more_ms)
{
	return now_ms + (more_ms < LONG_MS ? more_ms : LONG_MS);
}

static void explain(struct supervised *job, const char *message)
{
	if (job->report.message[0] == 0)
		(void)snprintf(job->report.message, sizeof job->report.message, "%s", message);
}

static void finish(struct supervised *job)
{
	job->state = EXITED;
	if (job->pid > 0)
		job->report.oom_kills = oom_count_since(job->vmstat_fd, job->oom_before);
	for (int n = 0; n < STREAMS; n++)
		job->report.end[n] = job->streams[n].end;
	say("the job ended: %s %u", job->report.signalled ? "signal" : "code", job->report.value);
}

int supervise_open(struct supervised *job, bool guest, int vmstat_fd)
{
	*job = (struct supervised){.guest = guest, .vmstat_fd = vmstat_fd, .pid = -1};
	for (int n = 0; n < STREAMS; n++)
		if (stream_open(&job->streams[n]) != 0)
			return -ENOMEM;
	return 0;
}

static void report_not_started(struct supervised *job, uint32_t code, const char *why)
{
	job->report.reason = REASON_NOT_STARTED;
	job->report.value = code;
	explain(job, why);
	finish(job);
}

void supervise_refuse(struct supervised *job, const char *why)
{
	report_not_started(job, 126, why);
}

void supervise_start(struct supervised *job, const struct job *what, uint64_t now_ms)
{
	struct process_start start;

	job->oom_before = oom_count(job->vmstat_fd);
	if (!process_start(what, job->guest, &start)) {
		report_not_started(job, (uint32_t)start.code, start.message);
		return;
	}
	job->pid = start.pid;
	job->started_ms = now_ms;
	job->job_grace_ms = what->grace_ms;
	job->timeout_at = what->timeout_ms ? after(now_ms, what->timeout_ms) : 0;
	job->streams[0].fd = start.out_fd;
	job->streams[1].fd = start.err_fd;
	job->state = RUNNING;
	say("the job runs as process %d", (int)start.pid);
}

void supervise_stop(struct supervised *job, enum exit_reason reason, uint64_t grace_ms, uint64_t now_ms)
{
	uint64_t kill_at = after(now_ms, grace_ms);

	if (job->state == IDLE) {
		job->report.signalled = true;
		job->report.value = SIGTERM;
		job->report.reason = reason;
		explain(job, "stopped before it started");
		finish(job);
	} else if (job->state == RUNNING && !job->main_done) {
		job->state = STOPPING;
		job->report.reason = reason;
		explain(job, reason == REASON_TIMEOUT ? "its time limit has passed" : "the host asked it to stop");
		job->kill_at = kill_at;
		kill(-job->pid, SIGTERM);
		kill(-job->pid, SIGCONT); /* one that is halted must hear it too */
	} else if (job->main_done && kill_at < job->drain_at) {
		job->drain_at = kill_at;
	} else if (job->state == STOPPING && kill_at < job->kill_at) {
		job->kill_at = kill_at;
	}
}

void supervise_reap(struct supervised *job, uint64_t now_ms)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != job->pid || job->main_done)
			continue;
		job->main_done = true;
		job->report.signalled = WIFSIGNALED(status);
		job->report.value = (uint32_t)(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
		job->timeout_at = job->kill_at = 0;
		job->drain_at = after(now_ms, DRAIN_MS);
	}
	job->children_gone = pid < 0 && errno == ECHILD;
}

static void start_killing(struct supervised *job, uint64_t now_ms)
{
	job->kill_at = 0;
	if (job->killing)
		return;
	job->killing = true;
	job->give_up_at = after(now_ms, GIVE_UP_MS);
}

static bool is_due(uint64_t at, uint64_t now_ms)
{
	return at != 0 && now_ms >= at;
}

/* After the main process: its pipes to the end, then nobody of the job may be left. */
static void wind_up(struct supervised *job, bool drained, uint64_t now_ms)
{
	bool closed = job->streams[0].fd < 0 && job->streams[1].fd < 0;

	if (job->children_gone) {
		if (drained)
			finish(job);
		return;
	}
	if (closed || is_due(job->drain_at, now_ms)) {
		if (!closed && !job->killing)
			explain(job, "processes that it left behind held its output, and were killed");
		start_killing(job, now_ms);
	}
	if (is_due(job->give_up_at, now_ms) && drained) {
		explain(job, "a process of it cannot be killed");
		finish(job);
	}
}

bool supervise_tick(struct supervised *job, uint64_t now_ms)
{
	enum guest_state before = job->state;
	bool drained = true;

	if (job->state != RUNNING && job->state != STOPPING)
		return false;
	if (is_due(job->timeout_at, now_ms)) {
		job->timeout_at = 0;
		supervise_stop(job, REASON_TIMEOUT, job->job_grace_ms, now_ms);
	}
	if (is_due(job->kill_at, now_ms))
		start_killing(job, now_ms);
	if (job->killing && !job->children_gone) {
		process_kill_all(job->guest, job->pid);
		supervise_reap(job, now_ms);
	}
	for (int n = 0; n < STREAMS; n++)
		drained &= stream_fill(&job->streams[n]);
	if (job->main_done)
		wind_up(job, drained, now_ms);
	return job->state != before;
}

static uint64_t sooner(uint64_t one, uint64_t other)
{
	return other != 0 && other < one ? other : one;
}

uint64_t supervise_due(const struct supervised *job, uint64_t now_ms)
{
	uint64_t due = UINT64_MAX;

	if (job->state != RUNNING && job->state != STOPPING)
		return due;
	due = sooner(due, job->timeout_at);
	due = sooner(due, job->kill_at);
	if (job->killing && !job->children_gone)
		due = sooner(due, now_ms + KILL_AGAIN_MS);
	else if (job->main_done && !job->children_gone)
		due = sooner(due, job->drain_at);
	return due;
}
