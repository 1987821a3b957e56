/* From a fresh clone of the keeper to the VMM: namespaces, limits, jail, descriptors, identity, exec.
 *
 * The order is the point: what needs root comes before the identity is dropped, and PR_SET_PDEATHSIG after
 * it, because the kernel clears it on every change of credentials.
 */
#include "vmm.h"

#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static struct failure join_netns(const char *path)
{
    struct failure failure = {0};
    int fd;
    if (!path)
        return failure;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
        failure = fail("netns", path, errno);
    if (fd >= 0)
        (void)close(fd);
    return failure;
}

/* No core files unless asked for: one would hold the guest's memory, secrets included. */
static struct failure set_limits(const struct options *options)
{
    struct rlimit none = {0, 0};
    if (setrlimit(RLIMIT_CORE, &none) < 0)
        return fail("rlimit", "core", errno);
    for (size_t i = 0; i < options->limit_count; i++) {
        struct rlimit limit = {options->limits[i].value, options->limits[i].value};
        if (setrlimit((__rlimit_resource_t)options->limits[i].resource, &limit) < 0)
            return fail("rlimit", "raise or lower", errno);
    }
    return (struct failure){0};
}

/* The keeper has made itself hard to kill when memory runs out; its VMM must stay an ordinary victim. */
static void reset_oom_score(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, "0", 1);
    (void)close(fd);
}

static struct failure arrange_descriptors(const struct options *options, int console_fd)
{
    if (dup2(console_fd, STDOUT_FILENO) < 0 || dup2(console_fd, STDERR_FILENO) < 0)
        return fail("console", "stdout and stderr", errno);
    if (close_range(3, UINT_MAX, CLOSE_RANGE_CLOEXEC) < 0)
        return fail("descriptors", "close_range", errno);
    for (size_t i = 0; i < options->kept_count; i++)
        if (fcntl(options->kept_fds[i], F_SETFD, 0) < 0)
            return fail("descriptors", "--keep-fd", errno);
    return (struct failure){0};
}

static void reset_signals(void)
{
    /* The system call itself: glibc keeps 32 and 33 to itself and refuses them, but make(1) leaves them ignored.
       All zero is SIG_DFL, no flags, no restorer, an empty mask. KILL and STOP refuse: fine. */
    static const unsigned long defaults[4];
    sigset_t none;
    for (int signal = 1; signal < NSIG; signal++)
        (void)!syscall(SYS_rt_sigaction, signal, defaults, NULL, NSIG / 8);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static struct failure drop_identity(uid_t uid, gid_t gid)
{
    if (uid != 0)
        for (int capability = 0; capability <= CAP_LAST_CAP; capability++)
            (void)prctl(PR_CAPBSET_DROP, capability); /* EINVAL: older kernels have fewer */
    if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
        return fail("identity", "groups, gid and uid", errno);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return fail("identity", "no_new_privs", errno);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return fail("identity", "death signal", errno);
    return (struct failure){0};
}

static struct failure prepare(const struct options *options, int procs_fd, int console_fd)
{
    struct failure failure;
    if (procs_fd >= 0 && join_cgroup(procs_fd) < 0)
        return fail("cgroup", "vmm", errno);
    failure = join_netns(options->netns);
    if (!failure.error)
        failure = set_limits(options);
    reset_oom_score();
    (void)setsid();
    (void)umask(0022); /* folders of the jail are for the VMM's uid too */
    if (!failure.error && options->jail)
        failure = enter_jail(options);
    (void)umask(0077); /* sockets that the VMM makes are for its uid and for root */
    if (!failure.error)
        failure = arrange_descriptors(options, console_fd);
    if (!failure.error)
        failure = drop_identity((uid_t)options->uid, (gid_t)options->gid);
    return failure;
}

void become_vmm(const struct options *options, int procs_fd, int console_fd, int start_fd)
{
    char *const environment[] = {NULL};
    struct failure failure = prepare(options, procs_fd, console_fd);
    if (!failure.error) {
        reset_signals();
        (void)!write(start_fd, &failure, sizeof failure); /* no error yet: all that is left is exec */
        (void)execve(options->argv[0], options->argv, environment);
        failure = fail("exec", options->argv[0], errno);
    }
    (void)!write(start_fd, &failure, sizeof failure);
    _exit(127);
}
