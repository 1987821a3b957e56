/* See boot.h. The image's disk is shared by all VMs and read-only; what a job writes goes to the VM's own disk. */
#include "boot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "console.h"

#define DEVICE_WAIT_MS 5000
#define STEP_MS 2

static void pause_ms(long ms)
{
	const struct timespec pause = {ms / 1000, ms % 1000 * 1000000L};

	(void)nanosleep(&pause, NULL);
}

static int mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
	(void)mkdir(target, 0755);
	if (mount(source, target, type, flags, data) == 0)
		return 0;
	say("cannot mount %s (%s) at %s: %s", source, type, target, strerror(errno));
	return -1;
}

/* Standard input, output and error are the console from here on; the kernel gave none if the initramfs has no node. */
static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	for (int n = 0; fd >= 0 && n < 3; n++)
		if (fd != n)
			(void)dup2(fd, n);
	if (fd > 2)
		close(fd);
}

static void load_module(const char *name)
{
	char path[300];
	int fd;

	(void)snprintf(path, sizeof path, "/lib/modules/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST))
		say("module %s: %s", name, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static unsigned long device_type(const char *device)
{
	char path[300];
	char told[16] = "";
	FILE *file;

	(void)snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/device", device);
	file = fopen(path, "re");
	if (file == NULL)
		return 0;
	if (fgets(told, sizeof told, file) == NULL)
		told[0] = 0;
	(void)fclose(file);
	return strtoul(told, NULL, 16);
}

bool boot_has_device(unsigned long type)
{
	DIR *devices = opendir("/sys/bus/virtio/devices");
	struct dirent *device;
	bool found = false;

	while (devices && !found && (device = readdir(devices)) != NULL)
		found = device->d_name[0] != '.' && device_type(device->d_name) == type;
	if (devices)
		closedir(devices);
	return found;
}

/* Each line is a file's name, and for some the type of the one virtio device that they are for. */
static void load_modules(void)
{
	char line[256];
	FILE *list = fopen("/modules.list", "re");

	while (list && fgets(line, sizeof line, list)) {
		char *rest = NULL;
		const char *name = strtok_r(line, " \n", &rest);
		const char *type = strtok_r(NULL, " \n", &rest);

		if (name && (type == NULL || boot_has_device(strtoul(type, NULL, 10))))
			load_module(name);
	}
	if (list)
		(void)fclose(list);
}

static bool wait_for(const char *path)
{
	for (int waited_ms = 0; waited_ms < DEVICE_WAIT_MS; waited_ms += STEP_MS) {
		if (access(path, F_OK) == 0)
			return true;
		pause_ms(STEP_MS);
	}
	return false;
}

static bool is_read_only(const char *disk)
{
	char path[64];
	char digit = '0';
	int fd;

	(void)snprintf(path, sizeof path, "/sys/block/%s/ro", disk);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (read(fd, &digit, 1) != 1)
			digit = '0';
		close(fd);
	}
	return digit == '1';
}

/* The read-only disk is the image, whatever the order in which the VMM lists them. */
static int mount_disks(void)
{
	const char *image = "/dev/vda";
	const char *own = "/dev/vdb";

	if (!wait_for(image)) {
		say("there is no disk /dev/vda: the VMM gives no image, or a virtio module is missing");
		return -1;
	}
	if (access(own, F_OK) != 0) {
		say("there is no disk /dev/vdb: what is written goes to memory");
		own = NULL;
	} else if (is_read_only("vdb") && !is_read_only("vda")) {
		image = "/dev/vdb";
		own = "/dev/vda";
	}
	if (mount_at(image, "/image", "ext4", MS_RDONLY | MS_NOATIME, NULL) != 0)
		return -1;
	return own ? mount_at(own, "/own", "ext4", MS_NOATIME, NULL) : mount_at("own", "/own", "tmpfs", 0, NULL);
}

/* `volatile`: this disk dies with the VM, so nothing in it is worth waiting for. A boot that was given up leaves the
 * mark of its mount behind, and a second mount would refuse. */
static int mount_overlay(void)
{
	(void)rmdir("/own/work/work/incompat/volatile");
	(void)rmdir("/own/work/work/incompat");
	(void)mkdir("/own/upper", 0755);
	(void)mkdir("/own/work", 0755);
	return mount_at("root", "/root", "overlay", MS_NOATIME,
			"lowerdir=/image,upperdir=/own/upper,workdir=/own/work,volatile");
}

static int switch_root(void)
{
	if (chdir("/root") == 0 && mount(".", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 && chdir("/") == 0)
		return 0;
	say("cannot switch to the root: %s", strerror(errno));
	return -1;
}

/* What programs expect. /tmp stays on disk: a build may put there more than the guest has memory. */
static int mount_the_usual(void)
{
	int error = mount_at("dev", "/dev", "devtmpfs", MS_NOSUID, NULL);

	error |= mount_at("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	error |= mount_at("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	error |= mount_at("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
	error |= mount_at("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	error |= mount_at("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
	error |= mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	(void)mkdir("/tmp", 01777);
	(void)chmod("/tmp", 01777);
	if (symlink("/proc/self/fd", "/dev/fd") != 0 || symlink("/proc/self/fd/0", "/dev/stdin") != 0 ||
	    symlink("/proc/self/fd/1", "/dev/stdout") != 0 || symlink("/proc/self/fd/2", "/dev/stderr") != 0)
		say("/dev lacks its links: %s", strerror(errno));
	return error;
}

int boot_root(void)
{
	(void)umask(022);
	if (mount_at("dev", "/dev", "devtmpfs", MS_NOSUID, NULL) != 0)
		return -1;
	open_console();
	if (mount_at("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
		return -1;
	load_modules();
	if (mount_disks() != 0 || mount_overlay() != 0 || switch_root() != 0)
		return -1;
	return mount_the_usual();
}

static bool port_is_named(const char *port, const char *name)
{
	char path[300];
	char told[128];
	FILE *file;
	bool same;

	(void)snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", port);
	file = fopen(path, "re");
	if (file == NULL)
		return false;
	same = fgets(told, sizeof told, file) && strncmp(told, name, strlen(name)) == 0 && told[strlen(name)] == '\n';
	(void)fclose(file);
	return same;
}

/* The kernel learns a port's name from the VMM some time after its driver is loaded. */
int boot_find_port(const char *name, char *path, unsigned size)
{
	for (int waited_ms = 0; waited_ms < DEVICE_WAIT_MS; waited_ms += STEP_MS) {
		DIR *ports = opendir("/sys/class/virtio-ports");
		struct dirent *port;
		bool found = false;

		while (ports && !found && (port = readdir(ports)) != NULL) {
			found = port_is_named(port->d_name, name);
			if (found)
				(void)snprintf(path, size, "/dev/%.64s", port->d_name);
		}
		if (ports)
			closedir(ports);
		if (found && access(path, F_OK) == 0)
			return 0;
		pause_ms(STEP_MS);
	}
	say("there is no virtio port named %s", name);
	return -1;
}

_Noreturn void boot_leave(void)
{
	sync();
	(void)mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	(void)reboot(RB_AUTOBOOT);
	for (;;) /* PID 1 that returns is a kernel panic, which ends the VM too, but says so */
		pause();
}
