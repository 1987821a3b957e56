/* See agent.h. One thread, one poll loop; every wait in it ends with a signal, a byte or a due time. */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "console.h"
#include "hear.h"
#include "speak.h"

#ifndef WAKE_MS /* tests set it to show that no host waits for it */
#define WAKE_MS 1000 /* the longest wait: then half a frame is given up, and a port looked at whose watch failed */
#endif
#define SIGNALS_AT (LINK_FDS + STREAMS)
#define POLLED (SIGNALS_AT + 1)
#define SILENCE_MS 30000  /* without an answer to a heartbeat: worth a line on the console */

uint64_t boot_clock_ms(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int agent_open(struct agent *agent, bool guest, int vmstat_fd, uint64_t born_ms, uint64_t entered_ms)
{
	int error = supervise_open(&agent->job, guest, vmstat_fd);

	agent->born_ms = born_ms;
	agent->kernel_ms = (uint32_t)(entered_ms - born_ms);
	agent->init_ms = (uint32_t)(boot_clock_ms() - entered_ms);
	say("ready after %u ms of kernel and %u ms of mine", agent->kernel_ms, agent->init_ms);
	return error;
}

static void be_heard_again(struct agent *agent, uint64_t now_ms)
{
	if (agent->beat_at != 0 && now_ms >= agent->beat_at && !agent->silence_told &&
	    now_ms - agent->echo_at > SILENCE_MS) {
		agent->silence_told = true;
		say("the host has been silent for %d s", SILENCE_MS / 1000);
	}
}

static uint64_t sooner(uint64_t one, uint64_t other)
{
	return other != 0 && other < one ? other : one;
}

static int wait_ms(const struct agent *agent, uint64_t now_ms)
{
	uint64_t due = supervise_due(&agent->job, now_ms);

	due = sooner(due, now_ms + WAKE_MS);
	if (agent->attached && link_idle(&agent->link)) { /* else nothing can be said before the host takes more */
		due = sooner(due, agent->beat_at);
		due = sooner(due, agent->exit_at);
	}
	due = sooner(due, agent->leave_at);
	return due > now_ms ? (int)(due - now_ms) : 0;
}

/* Wait for whatever comes first: what the link said is in its first descriptors. True when a child ended. */
static bool wait_for_events(const struct agent *agent, int signal_fd, uint64_t now_ms, struct pollfd fds[POLLED])
{
	struct signalfd_siginfo info;

	link_poll_targets(&agent->link, fds);
	for (int n = 0; n < STREAMS; n++) {
		const struct stream *stream = &agent->job.streams[n];
		bool wanted = stream->fd >= 0 && stream_has_room(stream);

		fds[LINK_FDS + n] = (struct pollfd){.fd = wanted ? stream->fd : -1, .events = POLLIN};
	}
	fds[SIGNALS_AT] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
	if (poll(fds, POLLED, wait_ms(agent, now_ms)) <= 0) {
		for (int n = 0; n < POLLED; n++)
			fds[n].revents = 0;
		return false;
	}
	return (fds[SIGNALS_AT].revents & POLLIN) && read(signal_fd, &info, sizeof info) > 0;
}

static int open_child_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
		return -errno;
	return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* True when the exit is safe and the good-bye is out, or has had its time. */
static bool may_leave(const struct agent *agent, uint64_t now_ms)
{
	if (agent->leave_at == 0)
		return false;
	return now_ms >= agent->leave_at || (!agent->want_bye && link_idle(&agent->link));
}

/* Never 0, which stands for never: a fast host reaches a double within its first millisecond. */
static uint64_t agent_clock_ms(const struct agent *agent)
{
	return boot_clock_ms() - agent->born_ms + 1;
}

int agent_run(struct agent *agent)
{
	int signal_fd = open_child_signals();

	if (signal_fd < 0)
		return signal_fd;
	for (;;) {
		uint64_t now_ms = agent_clock_ms(agent);
		struct frame frame;
		struct pollfd fds[POLLED];

		if (supervise_tick(&agent->job, now_ms) && agent->job.state == EXITED)
			agent->exit_at = now_ms;
		be_heard_again(agent, now_ms);
		speak(agent, now_ms);
		if (may_leave(agent, now_ms))
			break;
		if (wait_for_events(agent, signal_fd, now_ms, fds))
			supervise_reap(&agent->job, now_ms);
		now_ms = agent_clock_ms(agent);
		if (link_serve(&agent->link, fds, now_ms))
			agent->attached = agent->want_look = false;
		while (link_next(&agent->link, &frame))
			hear(agent, &frame, now_ms);
	}
	close(signal_fd);
	return 0;
}
