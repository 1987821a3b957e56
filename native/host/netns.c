/* Acts inside a network namespace, each in a thread of its own that ends with the act. */
#include "nimbus_host.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

/* What the thread is to do and what came of it; lives on the caller's stack. */
struct act {
    int netns_fd; /* entered first; -1: the act makes its own */
    int (*perform)(const struct act *act);
    const char *text; /* path or interface name */
    uint32_t uid;
    uint32_t gid;
    int numbers[3];
    void *(*nft_ctx_new)(uint32_t flags);
    void **context;
    int result;
};

static void *run_act(void *argument)
{
    struct act *act = argument;
    if (act->netns_fd >= 0 && setns(act->netns_fd, CLONE_NEWNET) < 0)
        act->result = -errno;
    else
        act->result = act->perform(act);
    return NULL;
}

/* Runs the act in a fresh thread with every signal blocked: a handler of the caller must not run there. */
static int perform_apart(struct act *act)
{
    sigset_t all;
    sigset_t before;
    pthread_t thread;
    int error;

    sigfillset(&all);
    error = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (error)
        return -error;
    error = pthread_create(&thread, NULL, run_act, act);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return -error;
    error = pthread_join(thread, NULL);
    return error ? -error : act->result;
}

static int bind_new_netns(const struct act *act)
{
    if (unshare(CLONE_NEWNET) < 0)
        return -errno;
    if (mount("/proc/thread-self/ns/net", act->text, NULL, MS_BIND, NULL) < 0)
        return -errno;
    return 0;
}

int nb_create_netns(const char *path)
{
    struct act act = {.netns_fd = -1, .perform = bind_new_netns, .text = path};
    int result;
    int fd = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    (void)close(fd);
    result = perform_apart(&act);
    if (result < 0)
        (void)unlink(path);
    return result;
}

int nb_remove_netns(const char *path)
{
    /* EINVAL: the file is there and nothing is mounted on it, as a killed nb_create_netns leaves it. */
    if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 && errno != EINVAL && errno != ENOENT)
        return -errno;
    if (unlink(path) < 0 && errno != ENOENT)
        return -errno;
    return 0;
}

static int make_tap(const struct act *act)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int result;
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    memcpy(request.ifr_name, act->text, strlen(act->text)); /* length checked by the caller; the rest is zero */
    if (ioctl(fd, TUNSETIFF, &request) == 0 && ioctl(fd, TUNSETOWNER, (unsigned long)act->uid) == 0 &&
        ioctl(fd, TUNSETGROUP, (unsigned long)act->gid) == 0 &&
        ioctl(fd, TUNSETPERSIST, (unsigned long)act->numbers[0]) == 0)
        return fd;
    result = -errno;
    (void)close(fd);
    return result;
}

int nb_open_tap(int netns_fd, const char *name, uint32_t uid, uint32_t gid, int persist)
{
    struct act act = {
        .netns_fd = netns_fd, .perform = make_tap, .text = name, .uid = uid, .gid = gid, .numbers = {persist != 0}};
    size_t length = strlen(name);
    if (netns_fd < 0)
        return -EBADF;
    if (length == 0 || length >= IFNAMSIZ || strchr(name, '%')) /* '%' would make the kernel choose a name */
        return -EINVAL;
    return perform_apart(&act);
}

static int make_socket(const struct act *act)
{
    int fd = socket(act->numbers[0], act->numbers[1] | SOCK_CLOEXEC, act->numbers[2]);
    return fd < 0 ? -errno : fd;
}

int nb_netns_socket(int netns_fd, int domain, int type, int protocol)
{
    struct act act = {.netns_fd = netns_fd, .perform = make_socket, .numbers = {domain, type, protocol}};
    if (netns_fd < 0)
        return -EBADF;
    return perform_apart(&act);
}

static int open_nft(const struct act *act)
{
    /* A libnftables that gets no socket ends the whole process, so one is tried first. */
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (fd < 0)
        return -errno;
    (void)close(fd);
    *act->context = act->nft_ctx_new(0);
    return *act->context ? 0 : -ENOMEM;
}

int nb_open_nft(int netns_fd, void *(*nft_ctx_new)(uint32_t flags), void **context)
{
    struct act act = {.netns_fd = netns_fd, .perform = open_nft, .nft_ctx_new = nft_ctx_new, .context = context};
    if (netns_fd < 0)
        return -EBADF;
    return perform_apart(&act);
}
