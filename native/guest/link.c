/* See link.h. */
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "console.h"

/* A sender never pauses inside a frame, so one that does not go on was cut off with its connection. */
#define HALF_FRAME_MS 1000

static void link_start(struct link *link)
{
	link->fd = link->listen_fd = link->watch_fd = -1;
	link->peer_cid = VMADDR_CID_ANY;
	link->out_length = link->out_done = 0;
	link->newest_wins = link->quiet = false;
	frame_reader_reset(&link->reader);
	link->reader.lost = 0;
}

/* A port without a host polls as hung up, all the time, so that poll cannot wait for a host. The port's driver wakes
 * whoever waits when one comes, and an edge-triggered watch tells of each waking once. Where there is no watch, the
 * caller's regular look must do. */
static void watch_port(struct link *link)
{
	struct epoll_event edge = {.events = EPOLLIN | EPOLLET};

	link->watch_fd = epoll_create1(EPOLL_CLOEXEC);
	if (link->watch_fd >= 0 && epoll_ctl(link->watch_fd, EPOLL_CTL_ADD, link->fd, &edge) != 0) {
		close(link->watch_fd);
		link->watch_fd = -1;
	}
	if (link->watch_fd < 0)
		say("the port cannot be watched: %s", strerror(errno));
}

int link_open_port(struct link *link, const char *device)
{
	link_start(link);
	link->fd = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (link->fd < 0)
		return -errno;
	watch_port(link);
	return 0;
}

/* Bind by the folder's descriptor: a path may be longer than the 107 bytes of a socket address. */
static int bind_at(int fd, const char *path)
{
	char folder[4096];
	char name[4096];
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int folder_fd;
	int wrote;
	int error;

	if (strlen(path) >= sizeof folder)
		return -ENAMETOOLONG;
	memcpy(folder, path, strlen(path) + 1);
	memcpy(name, path, strlen(path) + 1);
	folder_fd = open(dirname(folder), O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (folder_fd < 0)
		return -errno;
	wrote = snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", folder_fd, basename(name));
	if (wrote < 0 || (size_t)wrote >= sizeof address.sun_path)
		error = -ENAMETOOLONG;
	else
		error = bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 ? 0 : -errno;
	close(folder_fd);
	return error;
}

int link_open_socket(struct link *link, const char *path)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int error;

	link_start(link);
	if (fd < 0)
		return -errno;
	error = bind_at(fd, path);
	if (error == 0 && listen(fd, 1) != 0)
		error = -errno;
	if (error != 0) {
		close(fd);
		return error;
	}
	link->listen_fd = fd;
	return 0;
}

int link_open_vsock(struct link *link, unsigned port, unsigned peer_cid)
{
	const struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_ANY};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	link_start(link);
	link->peer_cid = peer_cid;
	link->newest_wins = true;
	if (fd < 0)
		return -errno;
	if (bind(fd, (const struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 1) != 0) {
		int error = -errno;

		close(fd);
		return error;
	}
	link->listen_fd = fd;
	return 0;
}

void link_poll_targets(const struct link *link, struct pollfd fds[LINK_FDS])
{
	fds[0] = (struct pollfd){.fd = link->fd, .events = POLLIN};
	fds[1] = (struct pollfd){.fd = link->fd < 0 || link->newest_wins ? link->listen_fd : -1, .events = POLLIN};
	if (link->quiet)
		fds[0].fd = link->watch_fd;
	else if (link->out_length > 0)
		fds[0].events |= POLLOUT;
}

/* Of a port the next host's attach may have been read before the last host's departure is seen, for the two come by
 * queues of their own: what was said since is not taken back. A socket's end is the end of its host, and a frame of which
 * nothing went out is forgotten with it. */
static bool lose(struct link *link)
{
	frame_reader_reset(&link->reader);
	if (link->listen_fd < 0) {
		link->quiet = true;
		return false;
	}
	if (link->out_done == 0)
		link->out_length = 0;
	close(link->fd);
	link->fd = -1;
	return true;
}

/* Takes the watch's word first, so that a host who comes after the look wakes us again. */
static bool is_still_quiet(const struct link *link)
{
	struct pollfd port = {.fd = link->fd, .events = POLLIN};
	struct epoll_event edge;

	if (link->watch_fd >= 0)
		(void)epoll_wait(link->watch_fd, &edge, 1, 0);
	return poll(&port, 1, 0) > 0 && (port.revents & POLLHUP);
}

/* The next connection; -1 where there is none after all, or it comes from somebody else. */
static int take_connection(const struct link *link)
{
	struct sockaddr_vm peer = {.svm_family = AF_UNSPEC};
	socklen_t size = sizeof peer;
	int fd = accept4(link->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0 || link->peer_cid == VMADDR_CID_ANY)
		return fd;
	if (getpeername(fd, (struct sockaddr *)&peer, &size) == 0 && peer.svm_family == AF_VSOCK &&
	    peer.svm_cid == link->peer_cid)
		return fd;
	say("a connection from %u was refused: it is not the host's", peer.svm_cid);
	close(fd);
	return -1;
}

static bool receive(struct link *link, uint64_t now_ms)
{
	size_t room;
	uint8_t *space = frame_reader_space(&link->reader, &room);
	ssize_t got = room > 0 ? read(link->fd, space, room) : -1;

	if (got > 0) {
		frame_reader_add(&link->reader, (size_t)got);
		link->heard_ms = now_ms;
		return true;
	}
	return room == 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

bool link_serve(struct link *link, const struct pollfd fds[LINK_FDS], uint64_t now_ms)
{
	short revents = fds[0].revents;
	int next = fds[1].revents & POLLIN ? take_connection(link) : -1;

	if (next >= 0) {
		if (link->fd >= 0)
			(void)lose(link);
		link->fd = next;
		return true;
	}
	if (link->quiet) {
		link->quiet = is_still_quiet(link);
		return false;
	}
	if (link->fd < 0)
		return false;
	if ((revents & (POLLIN | POLLHUP | POLLERR)) && !receive(link, now_ms))
		return lose(link);
	if (frame_reader_waits(&link->reader) && now_ms - link->heard_ms > HALF_FRAME_MS)
		frame_reader_reset(&link->reader);
	return false;
}

bool link_next(struct link *link, struct frame *frame)
{
	return frame_reader_next(&link->reader, frame);
}

bool link_idle(const struct link *link)
{
	return link->out_length == 0;
}

bool link_flush(struct link *link)
{
	while (link->out_done < link->out_length) {
		ssize_t sent;

		if (link->fd < 0 || link->quiet)
			return false;
		sent = write(link->fd, link->out + link->out_done, link->out_length - link->out_done);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false; /* full, or lost: reading tells which */
		link->out_done += (size_t)sent;
	}
	link->out_length = link->out_done = 0;
	return true;
}

bool link_send(struct link *link, size_t length)
{
	link->out_length = length;
	link->out_done = 0;
	return link_flush(link);
}
