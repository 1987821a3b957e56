/* Builds the jail and pivots into it. The mounts live in the caller's mount namespace only and end with it.
 *
 * Nothing here trusts what lies below a bind: targets are walked component by component without following
 * links, and a writable source's last component is not followed either, since its folder may be the VMM's.
 */
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif

static int set_attributes(int mount_fd, uint64_t attributes)
{
    struct mount_attr attr = {.attr_set = attributes};
    return mount_setattr(mount_fd, "", AT_EMPTY_PATH, &attr, sizeof attr);
}

/* Opens (O_PATH) the folder `name` of `parent`, made where it is absent; takes over `parent`. */
static int step_into(int parent, const char *name)
{
    int child;
    int error;
    if (mkdirat(parent, name, 0755) < 0 && errno != EEXIST)
        child = -1;
    else
        child = openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    error = errno;
    (void)close(parent);
    errno = error;
    return child;
}

/* The folder that is to hold the last component of `path` (cut off into `name`), below the jail's root. */
static int open_parent(int root, char *path, char **name)
{
    char *at = path;
    char *slash;
    int folder = fcntl(root, F_DUPFD_CLOEXEC, 3);
    while (folder >= 0) {
        while (*at == '/')
            at++;
        slash = strchr(at, '/');
        if (!slash)
            break;
        *slash = '\0';
        folder = step_into(folder, at);
        at = slash + 1;
    }
    *name = at;
    return folder;
}

static int open_target(int root, const char *target, bool is_folder)
{
    char path[PATH_MAX];
    char *name;
    int folder;
    int made;
    (void)snprintf(path, sizeof path, "%s", target);
    while (path[0] && path[strlen(path) - 1] == '/')
        path[strlen(path) - 1] = '\0';
    folder = open_parent(root, path, &name);
    if (folder < 0)
        return -1;
    if (is_folder)
        return step_into(folder, name);
    made = openat(folder, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444);
    if (made >= 0)
        (void)close(made);
    made = made < 0 && errno != EEXIST ? -1 : openat(folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    int error = errno;
    (void)close(folder);
    errno = error;
    return made;
}

static int attach(int root, int tree, const char *target, uint64_t attributes)
{
    struct stat status;
    int into;
    int result;
    int error;
    if (fstat(tree, &status) < 0 || set_attributes(tree, attributes) < 0)
        return -1;
    if (S_ISLNK(status.st_mode)) { /* a writable source that is a link: not followed, so not bound */
        errno = ELOOP;
        return -1;
    }
    into = open_target(root, target, S_ISDIR(status.st_mode));
    if (into < 0)
        return -1;
    result = move_mount(tree, "", into, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    error = errno;
    (void)close(into);
    errno = error;
    return result;
}

static struct failure bind_one(int root, const struct bind_option *bind)
{
    char source[PATH_MAX];
    char target[PATH_MAX];
    uint64_t attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (bind->writable ? 0 : MOUNT_ATTR_RDONLY);
    unsigned int follow = bind->writable ? AT_SYMLINK_NOFOLLOW : 0;
    int tree;
    int result;
    (void)snprintf(source, sizeof source, "%.*s", (int)bind->source.size, bind->source.text);
    (void)snprintf(target, sizeof target, "%.*s", (int)bind->target.size, bind->target.text);
    tree = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | follow);
    if (tree < 0)
        return fail("bind", source, errno);
    result = attach(root, tree, target, attributes);
    if (result < 0)
        return fail("bind", target, errno);
    (void)close(tree);
    return (struct failure){0};
}

/* A node of its own rather than a bind: the VMM's uid gets this one device, whatever group it has on the host. */
static struct failure make_device(int root, const char *name, uid_t uid, gid_t gid)
{
    char host[PATH_MAX];
    char path[PATH_MAX];
    char *last;
    struct stat status;
    int folder;
    (void)snprintf(host, sizeof host, "/dev/%s", name);
    if (stat(host, &status) < 0)
        return fail("device", host, errno);
    if (!S_ISCHR(status.st_mode))
        return fail("device", host, ENOTSUP);
    (void)snprintf(path, sizeof path, "%s", host);
    folder = open_parent(root, path, &last);
    if (folder < 0 || mknodat(folder, last, S_IFCHR | 0600, status.st_rdev) < 0 ||
        fchownat(folder, last, uid, gid, AT_SYMLINK_NOFOLLOW) < 0)
        return fail("device", host, errno);
    (void)close(folder);
    return (struct failure){0};
}

/* Of the pid namespace that we and the VMM share: it sees itself there and, since the keeper is root's, nobody else.
 * It needs it to reach by name a descriptor that it was given. */
static struct failure mount_proc(int root)
{
    uint64_t attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    struct failure failure = {0};
    int into = open_target(root, "/proc", true);
    int filesystem = fsopen("proc", FSOPEN_CLOEXEC);
    int tree = -1;
    if (into >= 0 && filesystem >= 0 && fsconfig(filesystem, FSCONFIG_SET_STRING, "subset", "pid", 0) == 0 &&
        fsconfig(filesystem, FSCONFIG_SET_STRING, "hidepid", "invisible", 0) == 0 &&
        fsconfig(filesystem, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        tree = fsmount(filesystem, FSMOUNT_CLOEXEC, (unsigned int)attributes);
    if (tree < 0 || move_mount(tree, "", into, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        failure = fail("proc", "/proc", errno);
    if (into >= 0)
        (void)close(into);
    if (filesystem >= 0)
        (void)close(filesystem);
    if (tree >= 0)
        (void)close(tree);
    return failure;
}

static struct failure fill_jail(int root, const struct options *options)
{
    struct failure failure = {0};
    for (size_t i = 0; i < options->bind_count && !failure.error; i++)
        failure = bind_one(root, &options->binds[i]);
    for (size_t i = 0; i < options->device_count && !failure.error; i++)
        failure = make_device(root, options->devices[i], (uid_t)options->uid, (gid_t)options->gid);
    if (options->proc && !failure.error)
        failure = mount_proc(root);
    return failure;
}

/* The old root is stacked on the new one for a moment, then detached: no path leads back to it. */
static struct failure pivot_into(int root)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC};
    if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
        return fail("jail", "pivot_root", errno);
    if (umount2(".", MNT_DETACH) < 0)
        return fail("jail", "detach the old root", errno);
    if (chdir("/") < 0 || mount_setattr(AT_FDCWD, "/", 0, &attr, sizeof attr) < 0)
        return fail("jail", "make the root read-only", errno);
    return (struct failure){0};
}

struct failure enter_jail(const struct options *options)
{
    struct failure failure;
    int root;
    /* 256 folders, files and nodes at the most; no file in it has a byte of its own */
    const char *size = "size=256k,nr_inodes=512,mode=0755";
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return fail("jail", "make mounts private", errno);
    if (mount("nimbus-jail", options->jail, "tmpfs", MS_NOSUID, size) < 0)
        return fail("jail", options->jail, errno);
    root = open_folder(options->jail);
    if (root < 0)
        return fail("jail", options->jail, errno);
    failure = fill_jail(root, options);
    return failure.error ? failure : pivot_into(root);
}
