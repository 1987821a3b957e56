/* Thin wrappers; no decision is taken here. */
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct failure fail(const char *step, const char *detail, int error)
{
    struct failure failure = {.error = error};
    (void)snprintf(failure.step, sizeof failure.step, "%s", step);
    (void)snprintf(failure.detail, sizeof failure.detail, "%s", detail);
    return failure;
}

pid_t clone_process(uint64_t flags, int *pidfd, int folder_fd)
{
    struct clone_args args = {.flags = flags | (pidfd ? CLONE_PIDFD : 0) | (folder_fd >= 0 ? CLONE_INTO_CGROUP : 0),
                              .pidfd = (uint64_t)(uintptr_t)pidfd,
                              .exit_signal = SIGCHLD,
                              .cgroup = folder_fd >= 0 ? (uint64_t)folder_fd : 0};
    return (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

bool is_birthplace(int folder_fd)
{
    int status = -1;
    pid_t child = clone_process(0, NULL, folder_fd);
    if (child == 0)
        _exit(0);
    if (child < 0) /* an older kernel, or a cgroup that takes nobody so */
        return false;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return false;
    return WIFEXITED(status);
}

int join_cgroup(int procs_fd)
{
    return write(procs_fd, "0", 1) == 1 ? 0 : -1;
}

int64_t boottime_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_BOOTTIME, &now); /* cannot fail: the clock exists since 2.6.39 */
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int open_folder(const char *path)
{
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* `Pid:` of a pidfd's fdinfo is numbered by the /proc that is read. */
int read_host_pid(int pidfd)
{
    char path[64];
    char line[64];
    int pid = -1;
    FILE *info;
    (void)snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
    info = fopen(path, "re");
    if (!info)
        return -1;
    while (fgets(line, sizeof line, info))
        if (strncmp(line, "Pid:", 4) == 0)
            pid = (int)strtol(line + 4, NULL, 10);
    (void)fclose(info);
    return pid;
}
