/* Finds the VMM by the pid file that its jailer wrote before it ended.
 *
 * The file lies in a folder that is the VMM's by now, so it is only believed where nobody but root can have written
 * it, and its number only where it is a child of ours: the kernel made it one when the jailer ended, because we are
 * PID 1 of the namespace that the number counts in.
 */
#include "jailer.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PID_DIGITS = 10 };

/* The number in the file, or -errno. A pipe or device there must not make us wait: O_NONBLOCK. */
static int64_t read_pid_file(const char *path)
{
    char text[PID_DIGITS + 2]; /* a line's end, and one more to see what is too long */
    struct stat status;
    ssize_t size;
    int64_t pid;
    int error;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    error = fstat(fd, &status) < 0 ? errno : 0;
    if (!error && (!S_ISREG(status.st_mode) || status.st_nlink != 1 || status.st_uid != 0))
        error = EPERM;
    size = error ? 0 : read(fd, text, sizeof text);
    if (size < 0)
        error = errno;
    (void)close(fd);
    if (error)
        return -error;
    if (size > 0 && text[size - 1] == '\n')
        size--;
    pid = parse_number(text, (size_t)size, INT_MAX);
    return pid > 0 ? pid : -EINVAL;
}

static struct failure refuse_jailer(int status)
{
    char detail[64];
    if (WIFSIGNALED(status))
        (void)snprintf(detail, sizeof detail, "the jailer was killed by signal %d", WTERMSIG(status));
    else
        (void)snprintf(detail, sizeof detail, "the jailer ended with status %d", WEXITSTATUS(status));
    return fail("pid-file", detail, ECANCELED);
}

struct failure take_vmm(struct keeper *keeper, int status)
{
    siginfo_t info;
    int64_t pid;
    int pidfd;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return refuse_jailer(status);
    pid = read_pid_file(keeper->options->pid_file);
    if (pid < 0)
        return fail("pid-file", keeper->options->pid_file, (int)-pid);
    /* Not reaped by this, and nobody else can: until we do, the pid cannot become another's. */
    if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0)
        return fail("pid-file", "it names no child that the jailer left", errno);
    pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    if (pidfd < 0)
        return fail("pid-file", "pidfd_open", errno);
    close_fd(&keeper->vmm_pidfd);
    keeper->vmm = (pid_t)pid;
    keeper->vmm_pidfd = pidfd;
    keeper->vmm_host_pid = read_host_pid(pidfd);
    return (struct failure){0};
}
