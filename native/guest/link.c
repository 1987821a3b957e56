/* See link.h. */
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* A sender never pauses inside a frame, so one that does not go on was cut off with its connection. */
#define HALF_FRAME_MS 1000

static void link_start(struct link *link)
{
	link->fd = link->listen_fd = -1;
	link->out_length = link->out_done = 0;
	link->quiet = false;
	frame_reader_reset(&link->reader);
	link->reader.lost = 0;
}

int link_open_port(struct link *link, const char *device)
{
	link_start(link);
	link->fd = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	return link->fd >= 0 ? 0 : -errno;
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

bool link_poll_target(const struct link *link, int *fd, short *events)
{
	*fd = link->fd >= 0 ? link->fd : link->listen_fd;
	*events = link->fd >= 0 && link->out_length > 0 ? POLLIN | POLLOUT : POLLIN;
	return !link->quiet;
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

/* A port polls as hung up, all the time, while nobody is connected to it: it is looked at again now and then. */
static bool is_still_quiet(const struct link *link)
{
	struct pollfd port = {.fd = link->fd, .events = POLLIN};

	return poll(&port, 1, 0) > 0 && (port.revents & POLLHUP);
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

bool link_serve(struct link *link, short revents, uint64_t now_ms)
{
	if (link->quiet) {
		link->quiet = is_still_quiet(link);
		return false;
	}
	if (link->fd < 0) {
		if (revents & POLLIN)
			link->fd = accept4(link->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		return link->fd >= 0;
	}
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
