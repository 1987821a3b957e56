/* nimbus-init: PID 1 of a Nimbus guest, and its double for hosts without guests.
 *
 *   /init                             in an initramfs: boot, serve the one job of this VM, end the VM
 *   nimbus-init --host-double PATH [VMSTAT]
 *                                     an ordinary process: the same link on the unix socket PATH, the job run right
 *                                     here. No isolation. Ends when the host has acknowledged the exit. Kills for want
 *                                     of memory are read from the file VMSTAT, for rehearsals, and else not at all.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "agent.h"
#include "boot.h"
#include "console.h"
#include "network.h"
#include "oom.h"

#define PORT_NAME "nimbus.link"

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

static int serve_guest(uint64_t entered_ms)
{
	char device[80];
	int error;

	if (boot_root() != 0 || boot_find_port(PORT_NAME, device, sizeof device) != 0)
		return 1;
	network_start();
	let_the_job_run();
	error = link_open_port(&agent.link, device);
	if (error == 0)
		error = agent_open(&agent, true, oom_open_guest(), 0, entered_ms);
	if (error == 0)
		error = agent_run(&agent);
	if (error != 0)
		say("cannot serve: %s", strerror(-error));
	return error != 0;
}

static int serve_double(const char *path, const char *vmstat, uint64_t entered_ms)
{
	int error = link_open_socket(&agent.link, path);

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
		(void)fprintf(stderr, "usage: nimbus-init --host-double PATH [VMSTAT] (or as PID 1 of a guest, without arguments)\n");
		return 2;
	}
	(void)serve_guest(entered_ms);
	boot_leave();
}
