/* The keeper's pure parts under ASan and UBSan. Prints each failed line; the exit status is their number. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "command.h"
#include "json.h"
#include "options.h"
#include "ring.h"

static int failures;

static void expect(int holds, const char *what)
{
    if (!holds) {
        (void)printf("FAILED: %s\n", what);
        failures++;
    }
}

static int parse_text(const char *text, struct command *command)
{
    return parse_command(text, strlen(text), command);
}

static void test_commands(void)
{
    static const char *const bad[] = {
        "",          "status",       "STATUS ",      "STATUS 1",    "DEADLINE",  "DEADLINE ",
        "DEADLINE -1", "DEADLINE 1x", "DEADLINE 9223372036854775807", "KILL", "KILL ",  "KILL a b",
        "KILL A",    "CONSOLE",      "CONSOLE x",    "CONSOLE 99999999999999999999", "\n",  "VERSION\n",
        "KILL aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "LEASE", "LEASE ", "LEASE none", "LEASE -1",
    };
    struct command command;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect(parse_text(bad[i], &command) == -EINVAL, bad[i]);
    expect(parse_text("STATUS", &command) == 0 && command.verb == VERB_STATUS, "STATUS");
    expect(parse_text("DEADLINE none", &command) == 0 && command.deadline_ns == NO_DEADLINE, "DEADLINE none");
    expect(parse_text("DEADLINE 17", &command) == 0 && command.deadline_ns == 17, "DEADLINE 17");
    expect(parse_text("LEASE 17", &command) == 0 && command.verb == VERB_LEASE && command.deadline_ns == 17, "LEASE 17");
    expect(parse_text("KILL lease-lost_2", &command) == 0 && !strcmp(command.reason, "lease-lost_2"), "KILL reason");
    expect(parse_text("CONSOLE 0", &command) == 0 && command.offset == 0, "CONSOLE 0");
    expect(parse_command("KILL a\0b", 8, &command) == -EINVAL, "a NUL byte in a reason");
}

#define NEEDED "--dir", "/vm", "--cgroup", "/cg", "--uid", "1", "--gid", "2", "--deadline", "none"

static const char *parse_words(char *const *argv, struct options *options)
{
    int argc = 0;
    int at;
    while (argv[argc])
        argc++;
    return parse_options(argc, argv, options, &at);
}

static void test_bad_options(void)
{
    static struct options options;
    char *const *const bad[] = {
        (char *const[]){"keeper", NULL},
        (char *const[]){"keeper", NEEDED, NULL},
        (char *const[]){"keeper", NEEDED, "--", NULL},
        (char *const[]){"keeper", NEEDED, "--", "relative", NULL},
        (char *const[]){"keeper", NEEDED, "--dir", NULL},
        (char *const[]){"keeper", NEEDED, "--dir", "/a/../b", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--uid", "4294967295", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--keep-fd", "2", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--bind", "/a:/b:ro", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--jail", "/j", "--bind", "/a:/b", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--jail", "/j", "--bind", "/a:/:ro", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--jail", "/j", "--bind", "/a:/b/..:ro", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--jail", "/j", "--dev", "../sda", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--rlimit", "nofile", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--rlimit", "nofile=-1", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--rlimit", "files=1", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--what", "1", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--proc", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--pid-file", "/p", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--uid", "0", "--pid-file", "p", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--uid", "0", "--pid-file", "/p", "--jail", "/j", "--", "/x", NULL},
        (char *const[]){"keeper", NEEDED, "--uid", "0", "--pid-file", "/p", "--netns", "/n", "--", "/x", NULL},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!parse_words(bad[i], &options)) {
            (void)printf("FAILED: command line %zu was accepted\n", i);
            failures++;
        }
}

static void test_good_options(void)
{
    static struct options options;
    char *const jailer[] = {"keeper", NEEDED, "--uid", "0", "--pid-file", "/p", "--", "/bin/jailer", NULL};
    char *const argv[] = {"keeper",  NEEDED,    "--jail",     "/j",       "--bind",       "/a:/b..c:rw", "--dev",
                          "net/tun", "--rlimit", "nofile=64", "--rlimit", "memlock=max", "--keep-fd",   "7",
                          "--proc", "--",      "/bin/x",  "--",         NULL};
    expect(parse_words(argv, &options) == NULL, "a full command line");
    expect(options.uid == 1 && options.gid == 2 && options.deadline_ns == NO_DEADLINE, "identity and deadline");
    expect(options.bind_count == 1 && options.binds[0].writable && options.binds[0].target.size == 5, "bind");
    expect(options.limit_count == 2 && options.limits[1].value == RLIM_INFINITY, "limits");
    expect(options.proc && !options.pid_file, "a /proc, no jailer");
    expect(options.kept_count == 1 && options.kept_fds[0] == 7, "kept descriptor");
    expect(!strcmp(options.argv[0], "/bin/x") && !strcmp(options.argv[1], "--") && !options.argv[2], "the VMM's words");
    expect(parse_words(jailer, &options) == NULL && !strcmp(options.pid_file, "/p") && !options.proc, "a jailer");
}

static void test_ring(void)
{
    static struct ring ring;
    static unsigned char big[RING_SIZE + 10];
    static unsigned char back[RING_SIZE];
    uint64_t start;
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (unsigned char)(i % 251);
    add_to_ring(&ring, big, 5);
    expect(read_ring(&ring, 2, back, 100, &start) == 3 && start == 2 && back[0] == 2, "from the middle");
    expect(read_ring(&ring, 99, back, 100, &start) == 0 && start == 5, "beyond the end");
    add_to_ring(&ring, big, sizeof big);
    expect(ring.total == 5 + sizeof big, "total counts what was lost too");
    expect(read_ring(&ring, 0, back, sizeof back, &start) == RING_SIZE && start == 15, "the oldest that is left");
    expect(memcmp(back, big + 10, RING_SIZE) == 0, "the last 64 KiB as they were");
}

static void test_json(void)
{
    char buffer[64];
    char small[8];
    struct json json;
    start_json(&json, buffer, sizeof buffer);
    add_raw(&json, "{");
    add_key(&json, "a");
    add_string(&json, "x\"\n\xff");
    add_key(&json, "b");
    add_number(&json, INT64_MIN);
    add_raw(&json, "}");
    expect(!strcmp(buffer, "{\"a\": \"x\\u0022\\u000a\\u00ff\", \"b\": -9223372036854775808}"), buffer);
    start_json(&json, small, sizeof small);
    add_string(&json, "too long for it");
    expect(json.cut && strlen(small) < sizeof small, "what does not fit is left out");
}

int main(void)
{
    test_commands();
    test_bad_options();
    test_good_options();
    test_ring();
    test_json();
    (void)printf("keeper: %d failed\n", failures);
    return failures;
}
