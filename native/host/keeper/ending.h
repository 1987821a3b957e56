/* What a keeper leaves on disk: console.tail, then exit.json. */
#ifndef KEEPER_ENDING_H
#define KEEPER_ENDING_H
#include <stdint.h>

#include "ring.h"

struct ending {
    int status;         /* as waitpid gave it */
    const char *reason; /* exit, deadline, orphan, kill */
    const char *detail; /* the word that came with KILL, or "" */
    int64_t ended_ns;
};

/* 0 or -errno: the console's last 64 KiB alone, for a start that failed. */
int write_console_tail(const struct ring *ring);

/* 0 or -errno; exit.json comes last, so who sees it finds the console's end too. */
int write_ending(const struct ending *ending, const struct ring *ring);

#endif
