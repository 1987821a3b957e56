/* nimbus-init: PID 1 of a Nimbus guest, and its double for hosts without guests.
 *
 *   /init                             in an initramfs: boot, serve the one job of this VM, end the VM
 *   nimbus-init --host-double LINK [VMSTAT]
 *                                     an ordinary process: the same link on the unix socket LINK, or where it reads
 *                                     vsock:PORT on that port for whoever comes, the job run right here. No isolation. Ends when the host has acknowledged the exit. Kills for want
 *                                     of memory are read from the file VMSTAT, for rehearsals, and else not at all.
 */
#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "agent.h"
#include "boot.h"
#include "console.h"
#include "identity.h"
#include "network.h"
#include "oom.h"

#define PORT_NAME "nimbus.link"
#define VSOCK "vsock:"
#ifndef LINK_HOST_CID /* a test's host is the guest's own kernel */
#define LINK_HOST_CID VMADDR_CID_HOST
#endif

static struct agent agent; /* some 130 KiB: not for the stack */

/* Do not interrupt the job at each write that it makes: it goes on until its pipe is full or its time slice over, and we
 * then take all of it at once. Halves the time of a job that prints much on one processor. process.c gives the job the
 * ordinary policy back. */
static void let_the_job_run(void)
{
	const struct sched_param none = {0};

	if (sched_setscheduler(0, SCHED_BATCH, &none) != 0)
		say("no batch scheduling: %s", strerror(errno));
}

/* A virtio port where there is a console device to have one; a VMM without gives a vsock device. */
static int open_link(void)
{
	char device[80];

	if (boot_has_device(VIRTIO_ID_CONSOLE) || !boot_has_device(VIRTIO_ID_VSOCK))
		if (boot_find_port(PORT_NAME, device, sizeof device) == 0)
			return link_open_port(&agent.link, device);
	return link_open_vsock(&agent.link, LINK_VSOCK_PORT, LINK_HOST_CID);
}

static int serve_guest(uint64_t entered_ms)
{
	int error;

	if (boot_root() != 0)
		return 1;
	agent.machine_id_fd = identity_open();
	network_start();
	let_the_job_run();
	error = open_link();
	if (error == 0)
		error = agent_open(&agent, true, oom_open_guest(), 0, entered_ms);
	if (error == 0)
		error = agent_run(&agent);
	if (error != 0)
		say("cannot serve: %s", strerror(-error));
	return error != 0;
}

static int open_double_link(const char *where)
{
	if (strncmp(where, VSOCK, strlen(VSOCK)) != 0)
		return link_open_socket(&agent.link, where);
	return link_open_vsock(&agent.link, (unsigned)strtoul(where + strlen(VSOCK), NULL, 10), VMADDR_CID_ANY);
}

static int serve_double(const char *path, const char *vmstat, uint64_t entered_ms)
{
	int error = open_double_link(path);

	(void)prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (error == 0)
		error = agent_open(&agent, false, vmstat ? oom_open_double(vmstat) : -1, entered_ms, entered_ms);
	if (error == 0)
		error = agent_run(&agent);
	if (error != 0)
		say("cannot serve on %s: %s", path, strerror(-error));
	return error != 0;
}

int main(int argc, char **argv)
{
	uint64_t entered_ms = boot_clock_ms();

	(void)signal(SIGPIPE, SIG_IGN);
	if ((argc == 3 || argc == 4) && strcmp(argv[1], "--host-double") == 0)
		return serve_double(argv[2], argv[3], entered_ms); /* argv ends with NULL */
	if (getpid() != 1) {
		(void)fprintf(stderr, "usage: nimbus-init --host-double LINK [VMSTAT] (or as PID 1 of a guest, without arguments)\n");
		return 2;
	}
	(void)serve_guest(entered_ms);
	boot_leave();
}
