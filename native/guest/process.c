/* See process.h. */
#include "process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "account.h"

#define PIPE_BYTES (256 * 1024) /* fewer, larger reads; the default of 64 KiB where the kernel says no */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define OPEN_FILES 1048576 /* what container runtimes give; build tools run into 1024 */

enum step { STEP_SESSION, STEP_USER, STEP_CWD, STEP_EXEC };

struct failure {
	enum step step;
	int error;
};

/* The child's environment is the job's, plus what every program expects and it does not set itself: putenv comes last. */
static int become_environment(const struct job *job, const struct account *account)
{
	if (clearenv() != 0 || setenv("PATH", DEFAULT_PATH, 1) != 0 || setenv("HOME", account->home, 1) != 0)
		return -1;
	if (account->name[0] && (setenv("USER", account->name, 1) != 0 || setenv("LOGNAME", account->name, 1) != 0))
		return -1;
	for (char **entry = job->env; *entry; entry++)
		if (putenv(*entry) != 0)
			return -1;
	return 0;
}

static int become_user(const struct account *account)
{
	if (geteuid() == account->uid && getegid() == account->gid && geteuid() != 0)
		return 0; /* an ordinary user that runs the double may stay itself, and nothing else */
	if (setgroups(account->group_count, account->groups) != 0)
		return -1;
	if (setresgid(account->gid, account->gid, account->gid) != 0)
		return -1;
	return setresuid(account->uid, account->uid, account->uid);
}

static void reset_signals(void)
{
	sigset_t none;

	for (int number = 1; number < NSIG; number++)
		(void)signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void fail(int fd, enum step step)
{
	struct failure failure = {step, errno};

	while (write(fd, &failure, sizeof failure) < 0 && errno == EINTR)
		;
	_exit(127);
}

/* In the child: become the job. Only what fails comes back, through `report_fd`, which exec closes. */
static _Noreturn void become_job(const struct job *job, const struct account *account, bool guest, const int fds[3],
				 int report_fd)
{
	const struct rlimit files = {OPEN_FILES, OPEN_FILES};
	const struct sched_param none = {0};
	bool ok = setsid() >= 0;

	for (int fd = 0; fd < 3; fd++)
		ok = ok && dup2(fds[fd], fd) >= 0;
	if (guest) {
		(void)setrlimit(RLIMIT_NOFILE, &files);
		(void)sched_setscheduler(0, SCHED_OTHER, &none); /* ours is another: nimbus-init.c says why */
	}
	if (!ok)
		fail(report_fd, STEP_SESSION);
	if (become_user(account) != 0)
		fail(report_fd, STEP_USER);
	if (!guest)
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* after setresuid, which clears it */
	if (chdir(job->cwd) != 0)
		fail(report_fd, STEP_CWD);
	reset_signals();
	if (become_environment(job, account) == 0)
		(void)execvp(job->argv[0], job->argv);
	fail(report_fd, STEP_EXEC);
}

static void explain(const struct job *job, const struct failure *failure, struct process_start *start)
{
	const char *why = strerror(failure->error);
	size_t room = sizeof start->message;

	start->code = failure->step == STEP_EXEC && failure->error == ENOENT ? 127 : 126;
	if (failure->step == STEP_SESSION)
		(void)snprintf(start->message, room, "no session for the command: %s", why);
	else if (failure->step == STEP_USER)
		(void)snprintf(start->message, room, "cannot become user %.64s: %s", job->user, why);
	else if (failure->step == STEP_CWD)
		(void)snprintf(start->message, room, "cannot enter folder %.128s: %s", job->cwd, why);
	else
		(void)snprintf(start->message, room, "cannot run %.128s: %s", job->argv[0], why);
}

static void close_all(const int *fds, size_t count)
{
	for (size_t n = 0; n < count; n++)
		if (fds[n] >= 0)
			close(fds[n]);
}

/* The pipes: report, stdout, stderr; and /dev/null. All close on exec. */
static bool open_fds(int report[2], int out[2], int err[2], int *nowhere)
{
	*nowhere = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (*nowhere < 0 || pipe2(report, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0)
		return false;
	(void)fcntl(out[0], F_SETPIPE_SZ, PIPE_BYTES);
	(void)fcntl(err[0], F_SETPIPE_SZ, PIPE_BYTES);
	return fcntl(out[0], F_SETFL, O_NONBLOCK) == 0 && fcntl(err[0], F_SETFL, O_NONBLOCK) == 0;
}

bool process_start(const struct job *job, bool guest, struct process_start *start)
{
	int fds[7] = {-1, -1, -1, -1, -1, -1, -1}; /* report, out, err, nowhere */
	struct failure failure = {STEP_SESSION, 0};
	struct account account;
	ssize_t got;

	*start = (struct process_start){.pid = -1, .out_fd = -1, .err_fd = -1, .code = 126};
	if (account_find(job->user, &account) != 0) {
		(void)snprintf(start->message, sizeof start->message, "there is no user %.64s", job->user);
		return false;
	}
	if (open_fds(fds, fds + 2, fds + 4, fds + 6))
		start->pid = fork();
	if (start->pid == 0)
		become_job(job, &account, guest, (const int[3]){fds[6], fds[3], fds[5]}, fds[1]);
	if (start->pid < 0) {
		failure.error = errno;
		explain(job, &failure, start);
		close_all(fds, 7);
		return false;
	}
	close_all((const int[4]){fds[1], fds[3], fds[5], fds[6]}, 4);
	do {
		got = read(fds[0], &failure, sizeof failure);
	} while (got < 0 && errno == EINTR);
	close(fds[0]);
	start->out_fd = fds[2];
	start->err_fd = fds[4];
	if (got <= 0)
		return true;
	explain(job, &failure, start);
	close_all(fds + 2, 1);
	close_all(fds + 4, 1);
	return false;
}

static long parent_of(const char *pid)
{
	char path[300];
	char stat[512];
	char *rest = NULL;
	FILE *file;

	(void)snprintf(path, sizeof path, "/proc/%s/stat", pid);
	file = fopen(path, "re");
	if (file == NULL)
		return -1;
	if (fgets(stat, sizeof stat, file))
		rest = strrchr(stat, ')'); /* the name before it may hold anything */
	(void)fclose(file);
	return rest && strlen(rest) > 4 ? strtol(rest + 4, NULL, 10) : -1;
}

/* By its folder in /proc, not by number: /proc may show the numbers of another pid namespace than ours. */
static void kill_process(const char *pid)
{
	char path[300];
	int fd;

	(void)snprintf(path, sizeof path, "/proc/%s", pid);
	fd = open(path, O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	(void)syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
	close(fd);
}

/* Our direct children: orphans of theirs become ours, so that call by call all are met. */
static void kill_children(void)
{
	char self[32] = "";
	DIR *processes = opendir("/proc");
	struct dirent *entry;

	if (processes == NULL)
		return;
	if (readlink("/proc/self", self, sizeof self - 1) > 0)
		while ((entry = readdir(processes)) != NULL)
			if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' &&
			    parent_of(entry->d_name) == strtol(self, NULL, 10))
				kill_process(entry->d_name);
	closedir(processes);
}

void process_kill_all(bool guest, pid_t group)
{
	if (guest) {
		kill(-1, SIGKILL); /* everything but us: PID 1 is exempt */
		return;
	}
	if (group > 1)
		kill(-group, SIGKILL);
	kill_children();
}
