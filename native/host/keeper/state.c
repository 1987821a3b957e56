/* What several parts of the keeper do to its state: kill once, move the deadline, arm its timer. */
#include "state.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

void kill_vmm(struct keeper *keeper, const char *reason, const char *detail)
{
    if (keeper->kill_reason)
        return;
    keeper->kill_reason = reason;
    (void)snprintf(keeper->kill_detail, sizeof keeper->kill_detail, "%s", detail);
    /* All three: the cgroup catches what forks right now, the other two need no cgroup. Errors change nothing. */
    (void)!write(keeper->kill_fd, "1", 1);
    (void)syscall(SYS_pidfd_send_signal, keeper->vmm_pidfd, SIGKILL, NULL, 0);
    (void)kill(-1, SIGKILL); /* as PID 1: everybody else in this namespace */
}

int move_deadline(struct keeper *keeper, int64_t deadline_ns)
{
    int64_t now = boottime_ns();
    if (keeper->kill_reason || keeper->deadline_ns <= now || deadline_ns <= now)
        return -ETIME;
    if (arm_timer(keeper->timer_fd, deadline_ns) < 0)
        return -ETIME;
    keeper->deadline_ns = deadline_ns;
    return 0;
}

int take_lease(struct keeper *keeper, int64_t deadline_ns)
{
    int result = move_deadline(keeper, deadline_ns);
    if (result == 0)
        close_fd(&keeper->orphan_fd);
    return result;
}

void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

int arm_timer(int timer_fd, int64_t deadline_ns)
{
    struct itimerspec when = {0};
    if (deadline_ns != NO_DEADLINE) {
        when.it_value.tv_sec = deadline_ns / 1000000000;
        when.it_value.tv_nsec = deadline_ns % 1000000000;
        if (deadline_ns == 0)
            when.it_value.tv_nsec = 1; /* zero would disarm */
    }
    return timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0 ? -errno : 0;
}
