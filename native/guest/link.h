/* The byte stream to the host and the frames on it: a virtio port or a vsock port in a guest, a socket in the double.
 *
 * One host at a time. A frame that was begun is always finished, to whoever listens then: a host that joins late sees
 * the tail, skips it, and every later frame is whole.
 */
#ifndef NIMBUS_GUEST_LINK_H
#define NIMBUS_GUEST_LINK_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

#define LINK_VSOCK_PORT 1024
#define LINK_FDS 2 /* what to poll: the connection, and the next one */

struct link {
	int fd;            /* the port or the accepted connection; -1: none */
	int listen_fd;     /* whence connections come; -1 with a virtio port */
	int watch_fd;      /* tells when something changes at a port; -1 without one */
	unsigned peer_cid; /* who may connect by vsock; VMADDR_CID_ANY: anybody */
	bool newest_wins;  /* a connection takes the place of the one before; else it waits, as at a VMM's port */
	bool quiet;        /* a port whose host end is closed: nothing to read or write */
	uint64_t heard_ms; /* when bytes came last */
	size_t out_length; /* the frame being sent, and how much of it has gone */
	size_t out_done;
	struct frame_reader reader;
	uint8_t out[FRAME_MAX];
};

/* 0 or -errno. */
int link_open_port(struct link *link, const char *device);
int link_open_socket(struct link *link, const char *path);
/* The newest connection is the host's. Only those from `peer_cid` are taken: a job could else push its host out. */
int link_open_vsock(struct link *link, unsigned port, unsigned peer_cid);
/* What to poll, and for which events. */
void link_poll_targets(const struct link *link, struct pollfd fds[LINK_FDS]);
/* Poll has filled `fds`. True when a socket's connection was lost or is a new one: the host must attach
 * (again); never of a port. Reads what there is. */
bool link_serve(struct link *link, const struct pollfd fds[LINK_FDS], uint64_t now_ms);
/* The next frame from the host. */
bool link_next(struct link *link, struct frame *frame);
/* True when a new frame may be put into `out`. */
bool link_idle(const struct link *link);
/* Send the frame of `length` bytes in `out`, or what is left of it. False when the host takes no more for now. */
bool link_send(struct link *link, size_t length);
bool link_flush(struct link *link);

#endif
