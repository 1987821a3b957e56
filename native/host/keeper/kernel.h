/* The few kernel calls that glibc has no wrapper for, and what the processes of a start tell each other. */
#ifndef KEEPER_KERNEL_H
#define KEEPER_KERNEL_H
#include <stdbool.h>
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

/* A cgroup as it is entered: by being born into its folder where that is not -1, else by a write to its
 * cgroup.procs. A birth costs nothing; the first write in a while waits for every CPU, 6 to 10 ms. */
struct leaf {
    int folder_fd;
    int procs_fd;
};

/* clone3(2) as a fork: flags of that call; `pidfd`, where not NULL, gets a descriptor; the child is born in the cgroup
 * of `folder_fd` where that is not -1. Returns as fork(2). */
pid_t clone_process(uint64_t flags, int *pidfd, int folder_fd);

/* Whether the caller's children live when they are born there: Linux 6.18 kills at birth whoever is cloned into a
 * cgroup that was killed more or less often than its parent's own. */
bool is_birthplace(int folder_fd);

/* Moves the calling process; `procs_fd` is a cgroup.procs. */
int join_cgroup(int procs_fd);

/* CLOCK_BOOTTIME in nanoseconds: it goes on while the host is suspended. */
int64_t boottime_ns(void);

int open_folder(const char *path);

/* The pid as the host's /proc numbers it, though we live in a namespace; -1 once the process is reaped. */
int read_host_pid(int pidfd);

#endif
