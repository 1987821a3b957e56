/* The whole state of the inner keeper, and the few acts on it that its start, its socket and its loop share. */
#ifndef KEEPER_STATE_H
#define KEEPER_STATE_H
#include "command.h"
#include "kernel.h"
#include "options.h"
#include "ring.h"

enum { MAX_CLIENTS = 16 };

enum phase {
    STARTING, /* cloned, not yet exec'd */
    JAILING,  /* what was exec'd is a jailer: the VMM is known once that has ended */
    RUNNING,
    ENDED,
};

/* The whole state of a keeper; one exists. Descriptors that are not in use are -1. */
struct keeper {
    const struct options *options;
    enum phase phase;
    bool at_exec; /* the child has said that only exec is left */
    int64_t deadline_ns;
    pid_t vmm;        /* in this pid namespace; the jailer while JAILING */
    int vmm_host_pid; /* as the host's /proc numbers it */
    int vmm_pidfd;
    int status;              /* of waitpid, once ENDED */
    const char *kill_reason; /* NULL: nobody asked for its death */
    char kill_detail[MAX_REASON + 1];
    uint32_t degraded;
    int kill_fd;    /* cgroup.kill of the VMM's leaf */
    int report_fd;  /* to the outer process, until it has confirmed */
    int start_fd;   /* the child's failure, or its end of file at exec */
    int console_fd; /* what the VMM prints */
    int timer_fd;
    int signal_fd;
    int orphan_fd;
    int listen_fd;
    int clients[MAX_CLIENTS];
    unsigned int next_dropped; /* which of them makes place when all are taken */
    struct ring ring;
};

/* Kills once; later calls change nothing, so the first reason stays. */
void kill_vmm(struct keeper *keeper, const char *reason, const char *detail);

/* 0, or -ETIME for a deadline that has passed (the old one stays). */
int move_deadline(struct keeper *keeper, int64_t deadline_ns);

/* The deadline takes the place of the orphan pipe in one act: 0, or -ETIME, and then both are as they were. */
int take_lease(struct keeper *keeper, int64_t deadline_ns);

/* 0 or -errno; NO_DEADLINE disarms. */
int arm_timer(int timer_fd, int64_t deadline_ns);

/* Closes what is open and marks it as not in use. */
void close_fd(int *fd);

#endif
