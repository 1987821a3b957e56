/* The byte stream to the host and the frames on it: a virtio port in a guest, a listening socket in the host double.
 *
 * One host at a time. A frame that was begun is always finished, to whoever listens then: a host that joins late sees
 * the tail, skips it, and every later frame is whole.
 */
#ifndef NIMBUS_GUEST_LINK_H
#define NIMBUS_GUEST_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

struct link {
	int fd;        /* the port or the accepted connection; -1: none */
	int listen_fd; /* the double's; -1 in a guest */
	bool quiet;    /* a port whose host end is closed: look again later */
	uint64_t heard_ms; /* when bytes came last */
	size_t out_length; /* the frame being sent, and how much of it has gone */
	size_t out_done;
	struct frame_reader reader;
	uint8_t out[FRAME_MAX];
};

/* 0 or -errno. */
int link_open_port(struct link *link, const char *device);
int link_open_socket(struct link *link, const char *path);
/* What to poll, and for which events. False: nothing now, look again in a moment. */
bool link_poll_target(const struct link *link, int *fd, short *events);
/* Poll said `revents`, or nothing could be polled and 0 is given. True when a socket's connection was lost or is a new
 * one: the host must attach (again); never of a port. Reads what there is. */
bool link_serve(struct link *link, short revents, uint64_t now_ms);
/* The next frame from the host. */
bool link_next(struct link *link, struct frame *frame);
/* True when a new frame may be put into `out`. */
bool link_idle(const struct link *link);
/* Send the frame of `length` bytes in `out`, or what is left of it. False when the host takes no more for now. */
bool link_send(struct link *link, size_t length);
bool link_flush(struct link *link);

#endif
