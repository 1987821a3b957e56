/* Parses the keeper's command line. Pure: no I/O, no allocation; fuzzed in host/test. */
#include "options.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

enum { MAX_FD = 1 << 20 };
#define MAX_ID 4294967294LL /* 2^32-1 means "leave as it is" to setresuid */

int64_t parse_number(const char *text, size_t size, int64_t max)
{
    int64_t value = 0;
    if (size == 0)
        return -1;
    for (size_t i = 0; i < size; i++) {
        int digit = text[i] - '0';
        if (digit < 0 || digit > 9 || value > (max - digit) / 10)
            return -1;
        value = value * 10 + digit;
    }
    return value;
}

/* Absolute, short enough, and without the components that would lead out of a jail. */
static bool is_clean_path(struct span path)
{
    if (path.size == 0 || path.size >= PATH_MAX || path.text[0] != '/')
        return false;
    for (size_t i = 0; i < path.size; i++) {
        size_t left = path.size - i;
        if (path.text[i] != '/')
            continue;
        if (left >= 3 && memcmp(path.text + i, "/..", 3) == 0 && (left == 3 || path.text[i + 3] == '/'))
            return false;
    }
    return true;
}

static struct span whole(const char *text)
{
    return (struct span){text, strlen(text)};
}

static const char *parse_path(const char *value, const char **into)
{
    if (!is_clean_path(whole(value)))
        return "an absolute path without .. is needed";
    *into = value;
    return NULL;
}

static const char *parse_id(const char *value, int64_t *into)
{
    *into = parse_number(value, strlen(value), MAX_ID);
    return *into < 0 ? "a number of a user or group is needed" : NULL;
}

static const char *parse_fd(const char *value, int *into)
{
    int64_t fd = parse_number(value, strlen(value), MAX_FD);
    if (fd < 0)
        return "a file descriptor's number is needed";
    *into = (int)fd;
    return NULL;
}

static const char *parse_kept_fd(const char *value, struct options *options)
{
    const char *wrong;
    if (options->kept_count == MAX_KEPT_FDS)
        return "too many descriptors to keep";
    wrong = parse_fd(value, &options->kept_fds[options->kept_count]);
    if (!wrong && options->kept_fds[options->kept_count] <= 2)
        wrong = "0, 1 and 2 are the VMM's own";
    if (!wrong)
        options->kept_count++;
    return wrong;
}

static const char *parse_deadline(const char *value, struct options *options)
{
    if (strcmp(value, "none") == 0) {
        options->deadline_ns = NO_DEADLINE;
        return NULL;
    }
    options->deadline_ns = parse_number(value, strlen(value), INT64_MAX - 1);
    return options->deadline_ns < 0 ? "nanoseconds of CLOCK_BOOTTIME or none are needed" : NULL;
}

static const char *parse_bind(const char *value, struct options *options)
{
    struct bind_option *bind = &options->binds[options->bind_count];
    const char *first = strchr(value, ':');
    const char *second = first ? strchr(first + 1, ':') : NULL;
    if (options->bind_count == MAX_BINDS)
        return "too many binds";
    if (!second || (strcmp(second, ":ro") != 0 && strcmp(second, ":rw") != 0))
        return "SOURCE:TARGET:ro or SOURCE:TARGET:rw is needed";
    bind->source = (struct span){value, (size_t)(first - value)};
    bind->target = (struct span){first + 1, (size_t)(second - first - 1)};
    bind->writable = second[2] == 'w';
    if (!is_clean_path(bind->source) || !is_clean_path(bind->target) || bind->target.size < 2)
        return "absolute paths without .. are needed";
    options->bind_count++;
    return NULL;
}

static const char *parse_device(const char *value, struct options *options)
{
    char path[256];
    if (options->device_count == MAX_DEVICES)
        return "too many devices";
    if (*value == '\0' || *value == '/' || strlen(value) > 200)
        return "a name below /dev is needed";
    (void)snprintf(path, sizeof path, "/%s", value);
    if (!is_clean_path(whole(path)))
        return "a name below /dev without .. is needed";
    options->devices[options->device_count++] = value;
    return NULL;
}

static const char *parse_limit(const char *value, struct options *options)
{
    static const struct {
        const char *name;
        int resource;
    } known[] = {
        {"as", RLIMIT_AS},         {"core", RLIMIT_CORE},       {"cpu", RLIMIT_CPU},     {"data", RLIMIT_DATA},
        {"fsize", RLIMIT_FSIZE},   {"memlock", RLIMIT_MEMLOCK}, {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC},
        {"stack", RLIMIT_STACK},
    };
    const char *equals = strchr(value, '=');
    if (options->limit_count == MAX_LIMITS)
        return "too many limits";
    for (size_t i = 0; equals && i < sizeof known / sizeof *known; i++) {
        int64_t number;
        if (strlen(known[i].name) != (size_t)(equals - value) || strncmp(known[i].name, value, strlen(known[i].name)) != 0)
            continue;
        number = parse_number(equals + 1, strlen(equals + 1), INT64_MAX);
        if (number < 0 && strcmp(equals + 1, "max") != 0)
            break;
        options->limits[options->limit_count++] =
            (struct limit_option){known[i].resource, number < 0 ? RLIM_INFINITY : (rlim_t)number};
        return NULL;
    }
    return "NAME=NUMBER or NAME=max is needed, NAME one of as core cpu data fsize memlock nofile nproc stack";
}

static const char *parse_pair(const char *name, const char *value, struct options *options)
{
    if (strcmp(name, "--dir") == 0)
        return parse_path(value, &options->dir);
    if (strcmp(name, "--cgroup") == 0)
        return parse_path(value, &options->cgroup);
    if (strcmp(name, "--netns") == 0)
        return parse_path(value, &options->netns);
    if (strcmp(name, "--jail") == 0)
        return parse_path(value, &options->jail);
    if (strcmp(name, "--pid-file") == 0)
        return parse_path(value, &options->pid_file);
    if (strcmp(name, "--uid") == 0)
        return parse_id(value, &options->uid);
    if (strcmp(name, "--gid") == 0)
        return parse_id(value, &options->gid);
    if (strcmp(name, "--ready-fd") == 0)
        return parse_fd(value, &options->ready_fd);
    if (strcmp(name, "--orphan-fd") == 0)
        return parse_fd(value, &options->orphan_fd);
    if (strcmp(name, "--keep-fd") == 0)
        return parse_kept_fd(value, options);
    if (strcmp(name, "--deadline") == 0)
        return parse_deadline(value, options);
    if (strcmp(name, "--bind") == 0)
        return parse_bind(value, options);
    if (strcmp(name, "--dev") == 0)
        return parse_device(value, options);
    if (strcmp(name, "--rlimit") == 0)
        return parse_limit(value, options);
    return "no such option";
}

static const char *find_missing(const struct options *options)
{
    if (!options->dir || !options->cgroup)
        return "--dir and --cgroup are needed";
    if (options->uid < 0 || options->gid < 0)
        return "--uid and --gid are needed";
    if (options->deadline_ns < 0)
        return "--deadline is needed: nanoseconds of CLOCK_BOOTTIME or none";
    if (!options->jail && (options->bind_count || options->device_count || options->proc))
        return "--bind, --dev and --proc need --jail";
    if (options->pid_file && (options->uid != 0 || options->jail || options->netns))
        return "--pid-file is for a jailer: it needs --uid 0, and the jail and the netns are its own affair";
    if (!options->argv || !options->argv[0] || options->argv[0][0] != '/')
        return "the VMM's absolute path and arguments are needed after --";
    return NULL;
}

const char *parse_options(int argc, char *const *argv, struct options *options, int *at)
{
    const char *wrong;
    memset(options, 0, sizeof *options);
    options->uid = options->gid = options->deadline_ns = -1;
    options->ready_fd = options->orphan_fd = -1;
    for (*at = 1; *at < argc; *at += 2) {
        if (strcmp(argv[*at], "--") == 0) {
            options->argv = argv + *at + 1;
            break;
        }
        if (strcmp(argv[*at], "--proc") == 0) { /* the one option without a value */
            options->proc = true;
            *at -= 1;
            continue;
        }
        if (*at + 1 == argc)
            return "an option needs its value";
        wrong = parse_pair(argv[*at], argv[*at + 1], options);
        if (wrong)
            return wrong;
    }
    wrong = find_missing(options);
    if (wrong)
        *at = argc;
    return wrong;
}
