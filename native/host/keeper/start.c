/* The order matters: the deadline is armed and the socket open before the VMM exists. */
#include "start.h"

#include "control.h"
#include "vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

static void protect_from_oom(struct keeper *keeper)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "-1000", 5) != 5)
        keeper->degraded |= DEGRADED_OOM_SCORE; /* EACCES without CAP_SYS_RESOURCE: reported, not fatal */
    close_fd(&fd);
}

static void take_name(const char *dir)
{
    char name[16];
    const char *last = strrchr(dir, '/');
    (void)snprintf(name, sizeof name, "keeper-%.8s", last ? last + 1 : dir);
    (void)prctl(PR_SET_NAME, name);
}

static struct failure become_keeper(struct keeper *keeper)
{
    static const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGQUIT, SIGUSR1, SIGUSR2};
    sigset_t children;
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd < 0 || dup2(null_fd, 0) < 0 || dup2(null_fd, 1) < 0 || dup2(null_fd, 2) < 0)
        return fail("keeper", "/dev/null", errno);
    close_fd(&null_fd);
    (void)setsid();
    (void)umask(0077);
    take_name(keeper->options->dir);
    protect_from_oom(keeper);
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        (void)!sigaction(ignored[i], &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    if (sigprocmask(SIG_SETMASK, &children, NULL) < 0)
        return fail("keeper", "signal mask", errno);
    keeper->signal_fd = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
    keeper->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (keeper->signal_fd < 0 || keeper->timer_fd < 0 || arm_timer(keeper->timer_fd, keeper->deadline_ns) < 0)
        return fail("keeper", "timer and signals", errno);
    keeper->listen_fd = open_control();
    if (keeper->listen_fd < 0)
        return fail("socket", "keeper.sock", -keeper->listen_fd);
    if (keeper->orphan_fd >= 0 && fcntl(keeper->orphan_fd, F_SETFL, O_NONBLOCK) < 0)
        return fail("keeper", "--orphan-fd", errno);
    return (struct failure){0};
}

static struct failure start_vmm(struct keeper *keeper, const struct leaf *leaf)
{
    const struct options *options = keeper->options;
    int console[2];
    int start[2];
    if (pipe2(console, O_CLOEXEC) < 0 || pipe2(start, O_CLOEXEC) < 0)
        return fail("keeper", "pipes", errno);
    keeper->vmm = clone_process(options->jail ? CLONE_NEWNS | CLONE_NEWIPC : 0, &keeper->vmm_pidfd, leaf->folder_fd);
    if (keeper->vmm < 0)
        return fail("clone", "VMM", errno);
    if (keeper->vmm == 0)
        become_vmm(options, leaf->folder_fd < 0 ? leaf->procs_fd : -1, console[1], start[1]);
    (void)close(console[1]);
    (void)close(start[1]);
    (void)close(leaf->procs_fd);
    if (leaf->folder_fd >= 0)
        (void)close(leaf->folder_fd);
    for (size_t i = 0; i < options->kept_count; i++)
        (void)close(options->kept_fds[i]);
    keeper->console_fd = console[0];
    keeper->start_fd = start[0];
    keeper->vmm_host_pid = read_host_pid(keeper->vmm_pidfd);
    if (fcntl(console[0], F_SETFL, O_NONBLOCK) < 0 || fcntl(start[0], F_SETFL, O_NONBLOCK) < 0)
        return fail("keeper", "pipes", errno);
    return (struct failure){0};
}

struct failure start_keeper(struct keeper *keeper, const struct leaf *leaf)
{
    struct failure failure = become_keeper(keeper);
    return failure.error ? failure : start_vmm(keeper, leaf);
}
