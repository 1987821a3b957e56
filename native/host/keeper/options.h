/* The keeper's command line as a value. Parsing is pure: it reads argv, fills the struct, opens nothing. */
#ifndef KEEPER_OPTIONS_H
#define KEEPER_OPTIONS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

enum {
    MAX_BINDS = 64,
    MAX_DEVICES = 16,
    MAX_LIMITS = 16,
    MAX_KEPT_FDS = 16,
};

#define NO_DEADLINE INT64_MAX

/* A piece of an argument; not terminated. */
struct span {
    const char *text;
    size_t size;
};

struct bind_option {
    struct span source;
    struct span target;
    bool writable;
};

struct limit_option {
    int resource;
    rlim_t value;
};

struct options {
    const char *dir;
    const char *cgroup;
    const char *netns; /* NULL: the host's */
    const char *jail;  /* NULL: the host's root */
    const char *pid_file; /* NULL: argv is the VMM's; else a jailer's, which leaves the VMM's pid there */
    bool proc;            /* a /proc in the jail, of the VMM's own processes */
    int64_t uid;       /* -1 until given */
    int64_t gid;
    int64_t deadline_ns; /* CLOCK_BOOTTIME; NO_DEADLINE for `none` */
    int ready_fd;        /* -1: nobody asked */
    int orphan_fd;       /* -1: none */
    int kept_fds[MAX_KEPT_FDS];
    size_t kept_count;
    struct bind_option binds[MAX_BINDS];
    size_t bind_count;
    const char *devices[MAX_DEVICES];
    size_t device_count;
    struct limit_option limits[MAX_LIMITS];
    size_t limit_count;
    char *const *argv; /* of the VMM, NULL-terminated, its first word an absolute path */
};

/* NULL, or what is wrong with the word at argv[*at] (at == argc: with the whole). */
const char *parse_options(int argc, char *const *argv, struct options *options, int *at);

/* A decimal number of digits only, at most `max`; -1 for anything else. */
int64_t parse_number(const char *text, size_t size, int64_t max);

#endif
