/* nimbus-keeper: the small parent of one VMM. See docs/keeper.md for its options, messages and files.
 *
 * This is the outer process, a moment long: it checks, opens the cgroup, clones the keeper proper as PID 1
 * of a new pid namespace, waits until that one says the VMM runs, tells whoever started us, and leaves. So
 * the keeper is nobody's child and outlives the agent. Called by nimbus/host_agent/keeper.py.
 */
#include "json.h"
#include "kernel.h"
#include "options.h"
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <unistd.h>

enum { HEARD_LIMIT_MS = 10000 };

static void tell(const struct options *options, const char *text)
{
    if (options->ready_fd >= 0)
        (void)!write(options->ready_fd, text, strlen(text));
}

/* Until our starter has read the line and closed its end (stdout has no such reader: not waited for). As long
 * as we live, the keeper's pid cannot go to another process, so the starter can take hold of it without a race. */
static void wait_until_heard(const struct options *options)
{
    struct pollfd reader = {.fd = options->ready_fd};
    if (options->ready_fd > STDERR_FILENO)
        (void)poll(&reader, 1, HEARD_LIMIT_MS);
}

static int refuse(const struct options *options, const char *message, const char *step, int error, int status)
{
    char text[1024];
    struct json json;
    start_json(&json, text, sizeof text);
    add_raw(&json, "{");
    add_key(&json, "error");
    add_string(&json, message);
    add_key(&json, "errno");
    add_number(&json, error);
    add_key(&json, "step");
    add_string(&json, step);
    add_raw(&json, "}\n");
    (void)fprintf(stderr, "nimbus-keeper: %s\n", message);
    tell(options, text);
    return status;
}

static int refuse_failure(const struct options *options, const struct failure *failure)
{
    char message[512];
    (void)snprintf(message, sizeof message, "%s: %s: %s", failure->step, failure->detail, strerror(failure->error));
    return refuse(options, message, failure->step, failure->error,
                  failure->error == ETIME ? EX_TEMPFAIL : EX_SOFTWARE);
}

/* A keeper that is never told so kills its VMM: if we are killed here, nobody would know of it. */
static int confirm(const struct options *options, pid_t keeper, const struct started *started, int report_fd)
{
    char text[512];
    struct json json;
    start_json(&json, text, sizeof text);
    add_raw(&json, "{");
    add_key(&json, "pid");
    add_number(&json, keeper);
    add_key(&json, "vmm_pid");
    add_number(&json, started->vmm_pid);
    add_key(&json, "degraded");
    add_raw(&json, "[");
    if (started->degraded & DEGRADED_OOM_SCORE)
        add_string(&json, "oom_score_adj");
    add_raw(&json, "]}\n");
    tell(options, text);
    wait_until_heard(options);
    (void)send(report_fd, "1", 1, MSG_NOSIGNAL); /* fails where the VMM has already ended: nothing to confirm then */
    return 0;
}

static bool is_wanted(const struct options *options, int fd)
{
    if (fd <= 2 || fd == options->ready_fd || fd == options->orphan_fd)
        return true;
    for (size_t i = 0; i < options->kept_count; i++)
        if (fd == options->kept_fds[i])
            return true;
    return false;
}

/* Everything else that our starter let us inherit is closed, and 0, 1, 2 are made to exist. */
static struct failure sort_descriptors(const struct options *options)
{
    unsigned int gap = 3;
    int highest = options->ready_fd > options->orphan_fd ? options->ready_fd : options->orphan_fd;
    for (size_t i = 0; i < options->kept_count; i++)
        highest = options->kept_fds[i] > highest ? options->kept_fds[i] : highest;
    for (int fd = 3; fd <= highest; fd++) {
        if (!is_wanted(options, fd))
            continue;
        if (fcntl(fd, F_GETFD) < 0)
            return fail("descriptors", "one that was named is not open", errno);
        if ((unsigned int)fd > gap && close_range(gap, (unsigned int)fd - 1, 0) < 0)
            return fail("descriptors", "close_range", errno);
        gap = (unsigned int)fd + 1;
    }
    if (close_range(gap, UINT_MAX, 0) < 0)
        return fail("descriptors", "close_range", errno);
    while (fcntl(STDERR_FILENO, F_GETFD) < 0 || fcntl(STDOUT_FILENO, F_GETFD) < 0 || fcntl(STDIN_FILENO, F_GETFD) < 0)
        if (open("/dev/null", O_RDWR) < 0)
            return fail("descriptors", "/dev/null", errno);
    return (struct failure){0};
}

static int open_below(const char *folder, const char *name, int flags)
{
    char path[PATH_MAX + 32];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return open(path, flags | O_CLOEXEC);
}

static struct leaf open_leaf(const char *cgroup, const char *name)
{
    char procs[64];
    (void)snprintf(procs, sizeof procs, "%s/cgroup.procs", name);
    return (struct leaf){.folder_fd = open_below(cgroup, name, O_RDONLY | O_DIRECTORY),
                         .procs_fd = open_below(cgroup, procs, O_WRONLY)};
}

/* Either both are born into their cgroups or both move: the keeper is the VMM's parent, so what is true of us and both
 * of them is true between those two. */
static int choose_way(struct leaf *own, struct leaf *vmm)
{
    if (own->folder_fd >= 0 && vmm->folder_fd >= 0 && is_birthplace(own->folder_fd) && is_birthplace(vmm->folder_fd))
        return 0;
    if (own->folder_fd >= 0)
        (void)close(own->folder_fd);
    if (vmm->folder_fd >= 0)
        (void)close(vmm->folder_fd);
    own->folder_fd = vmm->folder_fd = -1;
    return join_cgroup(own->procs_fd);
}

/* Clones the keeper and reads what became of it. `*keeper` is its pid in our own numbering. */
static struct failure launch(const struct options *options, pid_t *keeper, struct started *started, int *report_fd)
{
    int report[2];
    struct leaf own = open_leaf(options->cgroup, "keeper");
    struct leaf vmm = open_leaf(options->cgroup, "vmm");
    int kill_fd = open_below(options->cgroup, "vmm/cgroup.kill", O_WRONLY);
    if (own.procs_fd < 0 || vmm.procs_fd < 0 || kill_fd < 0 || choose_way(&own, &vmm) < 0)
        return fail("cgroup", options->cgroup, errno);
    (void)close(own.procs_fd);
    if (chdir(options->dir) < 0)
        return fail("dir", options->dir, errno);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, report) < 0)
        return fail("keeper", "socket pair", errno);
    *keeper = clone_process(CLONE_NEWPID, NULL, own.folder_fd);
    if (own.folder_fd >= 0)
        (void)close(own.folder_fd);
    if (*keeper < 0)
        return fail("clone", "keeper", errno);
    if (*keeper == 0) {
        (void)close(report[0]);
        if (options->ready_fd > 2)
            (void)close(options->ready_fd);
        _exit(run_keeper(options, report[1], &vmm, kill_fd));
    }
    (void)close(report[1]);
    *report_fd = report[0];
    for (;;) {
        ssize_t size = read(report[0], started, sizeof *started);
        if (size == (ssize_t)sizeof *started)
            return started->failure;
        if (size >= 0)
            return fail("keeper", "it died before it could say why", ECHILD);
        if (errno != EINTR)
            return fail("keeper", "socket pair", errno);
    }
}

int main(int argc, char **argv)
{
    static struct options options;
    struct started started = {0};
    struct failure failure;
    char usage[512];
    pid_t keeper = -1;
    int report_fd = -1;
    int at;
    const char *wrong = parse_options(argc, argv, &options, &at);
    (void)signal(SIGPIPE, SIG_IGN); /* a starter that has gone is no reason to die between clone and report */
    if (wrong) {
        (void)snprintf(usage, sizeof usage, "%.200s%s%s", at < argc ? argv[at] : "", at < argc ? ": " : "", wrong);
        return refuse(&options, usage, "usage", EINVAL, EX_USAGE);
    }
    if (geteuid() != 0)
        return refuse(&options, "needs root: namespaces, cgroups and the VMM's own uid", "root", EPERM, EX_NOPERM);
    if (options.deadline_ns <= boottime_ns())
        return refuse(&options, "the deadline has passed: nothing was started", "deadline", ETIME, EX_TEMPFAIL);
    failure = sort_descriptors(&options);
    if (!failure.error)
        failure = launch(&options, &keeper, &started, &report_fd);
    return failure.error ? refuse_failure(&options, &failure) : confirm(&options, keeper, &started, report_fd);
}
