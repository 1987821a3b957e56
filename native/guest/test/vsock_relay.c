/* PID 1 of a guest that is its own host: tests/vm/test_guest_vsock.py.
 *
 * Runs /nimbus-init as PID 1 of a pid namespace and carries bytes between the machine's first virtio port, behind which
 * the test sits, and the vsock port of that nimbus-init, by the kernel's vsock loopback. Each time somebody opens the
 * port it makes a new connection and leaves the one before open, as a frozen host would. Restarts the machine when
 * nimbus-init has ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT "/dev/vport0p1"
#define LINK_PORT 1024
#define STEP_MS 10
#define PIECE 65536

static pid_t init_pid;

static void pause_or_leave(void)
{
	const struct timespec step = {0, STEP_MS * 1000000L};

	if (waitpid(init_pid, NULL, WNOHANG) == init_pid) {
		sync();
		(void)reboot(RB_AUTOBOOT);
	}
	(void)nanosleep(&step, NULL);
}

static int connect_link(void)
{
	const struct sockaddr_vm link = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_LOCAL, .svm_port = LINK_PORT};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && connect(fd, (const struct sockaddr *)&link, sizeof link) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

static bool is_open(int port)
{
	struct pollfd looked = {.fd = port, .events = POLLIN};

	return poll(&looked, 1, 0) >= 0 && !(looked.revents & POLLHUP);
}

/* False where one of them is gone. */
static bool carry(int from, int to)
{
	static char bytes[PIECE];
	ssize_t got = read(from, bytes, sizeof bytes);

	for (ssize_t done = 0; done < got;) {
		ssize_t sent = write(to, bytes + done, (size_t)(got - done));

		if (sent <= 0)
			return false;
		done += sent;
	}
	return got > 0;
}

static void relay(int port, int link)
{
	struct pollfd fds[2] = {{.fd = port, .events = POLLIN}, {.fd = link, .events = POLLIN}};

	for (;;) {
		if (poll(fds, 2, -1) < 0 || (fds[0].revents & POLLHUP))
			return;
		if (fds[0].revents && !carry(port, link))
			return;
		if (fds[1].revents && !carry(link, port))
			return;
	}
}

int main(void)
{
	int port = -1;

	(void)signal(SIGPIPE, SIG_IGN);
	if (unshare(CLONE_NEWPID) != 0)
		return 1;
	init_pid = fork();
	if (init_pid == 0) {
		(void)execl("/nimbus-init", "init", (char *)NULL);
		_exit(127);
	}
	for (; port < 0; port = open(PORT, O_RDWR | O_CLOEXEC))
		pause_or_leave();
	for (;;) {
		int link = is_open(port) ? connect_link() : -1;

		if (link >= 0) {
			relay(port, link); /* never closed: the guest must do without that */
		}
		pause_or_leave();
	}
}
