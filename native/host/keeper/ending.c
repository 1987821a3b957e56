/* Writes the ending into the working folder, which is the VM's and root's. */
#include "ending.h"

#include "command.h"
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static int write_all(int fd, const unsigned char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, bytes, size);
        if (written < 0 && errno != EINTR)
            return -errno;
        if (written > 0) {
            bytes += written;
            size -= (size_t)written;
        }
    }
    return 0;
}

/* Whole or not at all: a new file, renamed over the name. Not synced: what a SIGKILL of anybody leaves is in the
 * page cache, and after a host crash the VM is gone anyway and only its files are swept; a sync could take as
 * long as the disk has guests' writes to flush. */
static int replace_file(const char *name, const unsigned char *bytes, size_t size)
{
    char fresh[64];
    int result;
    int fd;
    (void)snprintf(fresh, sizeof fresh, "%s.new", name);
    fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    result = write_all(fd, bytes, size);
    if (close(fd) < 0 && result == 0)
        result = -errno;
    if (result == 0 && rename(fresh, name) < 0)
        result = -errno;
    if (result < 0)
        (void)unlink(fresh);
    return result;
}

static size_t render_ending(const struct ending *ending, const struct ring *ring, char *buffer, size_t size)
{
    struct json json;
    int signaled = WIFSIGNALED(ending->status);
    start_json(&json, buffer, size);
    add_raw(&json, "{");
    add_key(&json, "version");
    add_raw(&json, KEEPER_VERSION);
    add_key(&json, "kind");
    add_string(&json, signaled ? "signaled" : "exited");
    add_key(&json, "code");
    add_number(&json, signaled ? WTERMSIG(ending->status) : WEXITSTATUS(ending->status));
    add_key(&json, "reason");
    add_string(&json, ending->reason);
    add_key(&json, "detail");
    add_string(&json, ending->detail);
    add_key(&json, "ended_ns");
    add_number(&json, ending->ended_ns);
    add_key(&json, "console_total");
    add_number(&json, (int64_t)ring->total);
    add_raw(&json, "}\n");
    return json.used;
}

int write_console_tail(const struct ring *ring)
{
    static unsigned char tail[RING_SIZE];
    uint64_t start;
    size_t size = read_ring(ring, 0, tail, sizeof tail, &start);
    return replace_file("console.tail", tail, size);
}

int write_ending(const struct ending *ending, const struct ring *ring)
{
    char text[512];
    size_t size = render_ending(ending, ring, text, sizeof text);
    /* A full disk must not cost the exit status: the tail is worth less and its failure changes nothing. */
    (void)write_console_tail(ring);
    return replace_file("exit.json", (const unsigned char *)text, size);
}
