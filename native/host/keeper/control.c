/* Control socket: one datagram in, one datagram out. A client can be wrong, slow or gone; the keeper stays. */
#include "control.h"

#include "json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { CONSOLE_CHUNK = 32 * 1024 };

int open_control(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "keeper.sock"};
    int error;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    (void)unlink(address.sun_path); /* of a keeper that was killed; any other error shows at bind */
    if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && chmod(address.sun_path, 0600) == 0 &&
        listen(fd, MAX_CLIENTS) == 0)
        return fd;
    error = errno;
    (void)close(fd);
    return -error;
}

static int is_allowed(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

static void drop_client(int *client)
{
    (void)close(*client);
    *client = -1;
}

/* A free place, or that of whoever has held one for longest: a KILL must get through whatever others hold open. */
static int *make_place(struct keeper *keeper)
{
    int *place;
    for (int i = 0; i < MAX_CLIENTS; i++)
        if (keeper->clients[i] < 0)
            return &keeper->clients[i];
    place = &keeper->clients[keeper->next_dropped++ % MAX_CLIENTS];
    drop_client(place);
    return place;
}

void accept_client(struct keeper *keeper)
{
    int fd = accept4(keeper->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    if (is_allowed(fd))
        *make_place(keeper) = fd;
    else
        (void)close(fd);
}

static ssize_t send_text(int client, const char *text)
{
    return send(client, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
}

static ssize_t send_status(const struct keeper *keeper, int client)
{
    char text[512];
    struct json json;
    start_json(&json, text, sizeof text);
    add_raw(&json, "{");
    add_key(&json, "version");
    add_raw(&json, KEEPER_VERSION);
    add_key(&json, "phase");
    add_string(&json, keeper->phase < RUNNING ? "starting" : "running");
    add_key(&json, "vmm_pid");
    add_number(&json, keeper->vmm_host_pid);
    add_key(&json, "deadline_ns");
    if (keeper->deadline_ns == NO_DEADLINE)
        add_raw(&json, "null");
    else
        add_number(&json, keeper->deadline_ns);
    add_key(&json, "console_total");
    add_number(&json, (int64_t)keeper->ring.total);
    add_key(&json, "killing");
    if (keeper->kill_reason)
        add_string(&json, keeper->kill_reason);
    else
        add_raw(&json, "null");
    add_raw(&json, "}");
    return send_text(client, text);
}

static ssize_t send_console(const struct keeper *keeper, int client, uint64_t offset)
{
    static unsigned char packet[64 + CONSOLE_CHUNK];
    static unsigned char bytes[CONSOLE_CHUNK];
    uint64_t start;
    size_t size = read_ring(&keeper->ring, offset, bytes, sizeof bytes, &start);
    int head = snprintf((char *)packet, 64, "DATA %" PRIu64 " %" PRIu64 "\n", start, keeper->ring.total);
    memcpy(packet + head, bytes, size);
    return send(client, packet, (size_t)head + size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static ssize_t send_pidfd(const struct keeper *keeper, int client)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec text = {.iov_base = (char[]){'O', 'K'}, .iov_len = 2};
    struct msghdr message = {
        .msg_iov = &text, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &keeper->vmm_pidfd, sizeof(int));
    return sendmsg(client, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static ssize_t answer(struct keeper *keeper, int client, const struct command *command)
{
    switch (command->verb) {
    case VERB_VERSION:
        return send_text(client, KEEPER_VERSION);
    case VERB_STATUS:
        return send_status(keeper, client);
    case VERB_DEADLINE:
        return send_text(client, move_deadline(keeper, command->deadline_ns) < 0 ? "ERR past" : "OK");
    case VERB_LEASE:
        return send_text(client, take_lease(keeper, command->deadline_ns) < 0 ? "ERR past" : "OK");
    case VERB_KILL:
        kill_vmm(keeper, "kill", command->reason);
        return send_text(client, "OK");
    case VERB_PIDFD:
        return send_pidfd(keeper, client);
    case VERB_CONSOLE:
        return send_console(keeper, client, (uint64_t)command->offset);
    }
    return send_text(client, "ERR malformed");
}

void serve_client(struct keeper *keeper, int *client)
{
    char text[MAX_COMMAND + 1]; /* one more than allowed, so that what is too long is seen to be */
    struct command command;
    ssize_t sent;
    ssize_t size = recv(*client, text, sizeof text, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size > 0 && parse_command(text, (size_t)size, &command) == 0)
        sent = answer(keeper, *client, &command);
    else if (size > 0)
        sent = send_text(*client, "ERR malformed");
    else
        sent = -1; /* gone (or an empty datagram, which is as good as gone) */
    if (sent < 0)
        drop_client(client);
}
