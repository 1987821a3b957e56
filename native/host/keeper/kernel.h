/* The few kernel calls that glibc has no wrapper for, and what the processes of a start tell each other. */
#ifndef KEEPER_KERNEL_H
#define KEEPER_KERNEL_H
#include <stdint.h>
#include <sys/types.h>

/* What failed; error 0: nothing. Travels through pipes, so it holds no pointer. */
struct failure {
    int32_t error;
    char step[16];
    char detail[200];
};

/* The inner keeper's one message to the outer process. */
struct started {
    struct failure failure;
    int32_t vmm_pid; /* as this host's /proc numbers it */
    uint32_t degraded;
};

enum degradation {
    DEGRADED_OOM_SCORE = 1, /* the kernel may choose the keeper when memory runs out */
};

struct failure fail(const char *step, const char *detail, int error);

/* clone3(2) as a fork: flags of that call; `pidfd`, where not NULL, gets a descriptor; returns as fork(2). */
pid_t clone_process(uint64_t flags, int *pidfd);

/* Moves the calling process; `procs_fd` is a cgroup.procs. Not by CLONE_INTO_CGROUP: Linux 6.18 kills at birth
 * whoever is cloned from a cgroup that was never killed into one that was. The first move costs 6 ms, the next 0.2. */
int join_cgroup(int procs_fd);

/* CLOCK_BOOTTIME in nanoseconds: it goes on while the host is suspended. */
int64_t boottime_ns(void);

int open_folder(const char *path);

/* The pid as the host's /proc numbers it, though we live in a namespace; -1 once the process is reaped. */
int read_host_pid(int pidfd);

#endif
