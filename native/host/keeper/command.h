/* Control messages of the keeper's socket: one datagram each, text. Parsing is pure. */
#ifndef KEEPER_COMMAND_H
#define KEEPER_COMMAND_H
#include <stddef.h>
#include <stdint.h>

/* Of the messages, of what STATUS says and of exit.json; the reader is nimbus/wire/keeper.py. */
#define KEEPER_VERSION "2"

enum {
    MAX_COMMAND = 128,
    MAX_REASON = 32,
};

enum verb {
    VERB_VERSION,
    VERB_STATUS,
    VERB_DEADLINE,
    VERB_LEASE,
    VERB_KILL,
    VERB_PIDFD,
    VERB_CONSOLE,
};

struct command {
    enum verb verb;
    int64_t deadline_ns; /* VERB_DEADLINE and VERB_LEASE; NO_DEADLINE for a deadline of `none` */
    int64_t offset;      /* VERB_CONSOLE */
    char reason[MAX_REASON + 1];
};

/* 0 or -EINVAL. `text` need not be terminated and may hold any bytes. */
int parse_command(const char *text, size_t size, struct command *command);

#endif
