/* CPU masks, process descriptors and the time stamp counter. */
#include "nimbus_host.h"

#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The raw calls take any mask length; glibc's cpu_set_t would stop at 1024 CPUs. */
int nb_set_affinity(int tid, const uint64_t *words, size_t count)
{
    return syscall(SYS_sched_setaffinity, tid, count * sizeof *words, words) < 0 ? -errno : 0;
}

int nb_get_affinity(int tid, uint64_t *words, size_t count)
{
    for (size_t i = 0; i < count; i++)
        words[i] = 0;
    return syscall(SYS_sched_getaffinity, tid, count * sizeof *words, words) < 0 ? -errno : 0;
}

int nb_pidfd_open(int pid)
{
    long fd = syscall(SYS_pidfd_open, pid, 0);
    return fd < 0 ? -errno : (int)fd;
}

int nb_pidfd_send_signal(int pidfd, int signal)
{
    return syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) < 0 ? -errno : 0;
}

#if defined(__x86_64__)
#include <x86intrin.h>

struct moment {
    uint64_t ticks;
    int64_t ns;
};

/* Both clocks at one moment: of several tries the one that was least disturbed between its two readings. */
static struct moment read_moment(void)
{
    struct moment moment = {0};
    uint64_t narrowest = UINT64_MAX;
    for (int i = 0; i < 16; i++) {
        struct timespec now;
        uint64_t before = __rdtsc();
        (void)clock_gettime(CLOCK_MONOTONIC_RAW, &now); /* cannot fail: the clock is there since 2.6.28 */
        uint64_t width = __rdtsc() - before;
        if (width < narrowest) {
            narrowest = width;
            moment.ticks = before + width / 2;
            moment.ns = now.tv_sec * 1000000000LL + now.tv_nsec;
        }
    }
    return moment;
}

int64_t nb_tsc_khz(void)
{
    const struct timespec span = {.tv_nsec = 10000000};
    struct moment start = read_moment();
    (void)nanosleep(&span, NULL); /* woken early by a signal: the quotient still holds, only less finely */
    struct moment end = read_moment();
    if (end.ns <= start.ns)
        return -EAGAIN;
    return (int64_t)((double)(end.ticks - start.ticks) * 1e6 / (double)(end.ns - start.ns));
}
#else
int64_t nb_tsc_khz(void)
{
    return -ENOTSUP;
}
#endif
