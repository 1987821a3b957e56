/* The inner keeper's life: one poll loop from the VMM's clone until it is dead and the ending is on disk.
 *
 * It is PID 1 of its pid namespace, so its own death, however it comes, kills everything in there by the
 * kernel's hand. It trusts nothing that the VMM prints and never waits for a client.
 */
#include "watch.h"

#include "control.h"
#include "ending.h"
#include "jailer.h"
#include "start.h"
#include "state.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FIXED = 7 }; /* descriptors polled besides the clients */
enum { LAST_WORDS_MS = 2000 }; /* how long stragglers may take to die before the ending is written without them */

static void report_start(const struct keeper *keeper, struct failure failure)
{
    struct started started = {.failure = failure, .vmm_pid = keeper->vmm_host_pid, .degraded = keeper->degraded};
    (void)!write(keeper->report_fd, &started, sizeof started); /* nobody there: check_heard finds out */
}

/* The outer process confirms that our starter knows of us; if it ends without, nobody ever will. */
static void check_heard(struct keeper *keeper)
{
    char confirmed;
    ssize_t size = read(keeper->report_fd, &confirmed, 1);
    close_fd(&keeper->report_fd);
    if (size != 1)
        kill_vmm(keeper, "orphan", "unheard");
}

/* What the child says on its way to exec; see vmm.h. */
static void read_start(struct keeper *keeper)
{
    struct failure failure = {0};
    ssize_t size = read(keeper->start_fd, &failure, sizeof failure);
    if (size == (ssize_t)sizeof failure && !failure.error) {
        keeper->at_exec = true;
        size = read(keeper->start_fd, &failure, sizeof failure);
    }
    if (size < 0)
        return;
    close_fd(&keeper->start_fd);
    if (size == 0 && keeper->kill_reason)
        failure = fail(keeper->kill_reason, "killed before it ran", ETIME);
    else if (size == 0 && !keeper->at_exec)
        failure = fail("clone", "somebody killed it before it ran", ECANCELED);
    if (!failure.error && keeper->options->pid_file) {
        keeper->phase = JAILING;
        return;
    }
    report_start(keeper, failure);
    if (failure.error)
        _exit(1); /* takes the child along; there is no ending to write, since nothing began */
    keeper->phase = RUNNING;
}

/* At most one pipe's fill per round, so that a VMM that never stops printing cannot keep the deadline waiting. */
static void drain_console(struct keeper *keeper)
{
    unsigned char bytes[16 * 1024];
    for (int round = 0; round < 4 && keeper->console_fd >= 0; round++) {
        ssize_t size = read(keeper->console_fd, bytes, sizeof bytes);
        if (size > 0)
            add_to_ring(&keeper->ring, bytes, (size_t)size);
        else if (size == 0)
            close_fd(&keeper->console_fd);
        else
            return;
    }
}

/* The jailer has ended, and what it left as our child is the VMM; or the start has failed, whatever it left. */
static void end_jailing(struct keeper *keeper, int status)
{
    struct failure failure = keeper->kill_reason ? fail(keeper->kill_reason, "killed before it ran", ETIME)
                                                 : take_vmm(keeper, status);
    if (failure.error) { /* why is in what the jailer printed; the tail is written before anybody hears of it */
        drain_console(keeper);
        (void)write_console_tail(&keeper->ring);
    }
    report_start(keeper, failure);
    if (failure.error)
        _exit(1);
    keeper->phase = RUNNING;
}

/* Reaps all that is dead; returns whether anybody is left. Until the VMM runs only the child that we cloned: what a
 * jailer leaves could be dead before we know it for the VMM, and its status would be lost. */
static int reap(struct keeper *keeper)
{
    struct signalfd_siginfo info;
    int status;
    pid_t pid;
    (void)!read(keeper->signal_fd, &info, sizeof info);
    while ((pid = waitpid(keeper->phase < RUNNING ? keeper->vmm : -1, &status, WNOHANG)) > 0) {
        if (pid != keeper->vmm)
            continue;
        if (keeper->phase == STARTING)
            read_start(keeper);
        if (keeper->phase == JAILING) {
            end_jailing(keeper, status);
            continue;
        }
        keeper->phase = ENDED;
        keeper->status = status;
    }
    return pid == 0;
}

static void check_orphan(struct keeper *keeper)
{
    char ignored[64];
    ssize_t size = read(keeper->orphan_fd, ignored, sizeof ignored);
    if (size > 0 || (size < 0 && (errno == EAGAIN || errno == EINTR)))
        return;
    close_fd(&keeper->orphan_fd);
    kill_vmm(keeper, "orphan", "");
}

static void serve_round(struct keeper *keeper)
{
    struct pollfd polled[FIXED + MAX_CLIENTS] = {
        {.fd = keeper->signal_fd, .events = POLLIN},  {.fd = keeper->timer_fd, .events = POLLIN},
        {.fd = keeper->start_fd, .events = POLLIN},   {.fd = keeper->console_fd, .events = POLLIN},
        {.fd = keeper->orphan_fd, .events = POLLIN},  {.fd = keeper->listen_fd, .events = POLLIN},
        {.fd = keeper->report_fd, .events = POLLIN},
    };
    for (int i = 0; i < MAX_CLIENTS; i++)
        polled[FIXED + i] = (struct pollfd){.fd = keeper->clients[i], .events = POLLIN};
    if (poll(polled, FIXED + MAX_CLIENTS, -1) < 0)
        return;
    if (keeper->deadline_ns <= boottime_ns()) { /* first: nobody's message may come before it */
        (void)arm_timer(keeper->timer_fd, NO_DEADLINE);
        kill_vmm(keeper, "deadline", "");
    }
    if (polled[4].revents)
        check_orphan(keeper);
    if (polled[2].revents)
        read_start(keeper);
    if (polled[6].revents)
        check_heard(keeper);
    if (polled[3].revents)
        drain_console(keeper);
    if (polled[0].revents)
        (void)reap(keeper);
    for (int i = 0; i < MAX_CLIENTS && keeper->phase != ENDED; i++)
        if (polled[FIXED + i].revents)
            serve_client(keeper, &keeper->clients[i]);
    if (polled[5].revents && keeper->phase != ENDED)
        accept_client(keeper);
}

/* The VMM is dead: whatever it left in its cgroup or here dies too, and its last words are read. */
static void gather_last_words(struct keeper *keeper)
{
    int64_t limit_ns = boottime_ns() + LAST_WORDS_MS * 1000000LL;
    (void)!write(keeper->kill_fd, "1", 1);
    (void)kill(-1, SIGKILL);
    while (reap(keeper) && boottime_ns() < limit_ns) {
        struct pollfd polled[2] = {{.fd = keeper->signal_fd, .events = POLLIN},
                                   {.fd = keeper->console_fd, .events = POLLIN}};
        (void)poll(polled, 2, 100);
        drain_console(keeper);
    }
    drain_console(keeper); /* all writers are dead: one pipe's fill is all there can be */
}

static int finish(struct keeper *keeper)
{
    /* Killed by our hand only if it died of SIGKILL; a VMM that ended by itself at the last moment keeps its word. */
    int ours = keeper->kill_reason && WIFSIGNALED(keeper->status) && WTERMSIG(keeper->status) == SIGKILL;
    struct ending ending = {.status = keeper->status,
                            .reason = ours ? keeper->kill_reason : "exit",
                            .detail = ours ? keeper->kill_detail : "",
                            .ended_ns = boottime_ns()};
    gather_last_words(keeper);
    int result = write_ending(&ending, &keeper->ring);
    (void)unlink("keeper.sock");
    return result < 0 ? 1 : 0;
}

int run_keeper(const struct options *options, int report_fd, const struct leaf *leaf, int kill_fd)
{
    static struct keeper keeper; /* static for its size only */
    struct failure failure;
    keeper = (struct keeper){.options = options, .phase = STARTING, .deadline_ns = options->deadline_ns};
    keeper.report_fd = report_fd;
    keeper.kill_fd = kill_fd;
    keeper.orphan_fd = options->orphan_fd;
    keeper.vmm_pidfd = keeper.start_fd = keeper.console_fd = -1;
    keeper.timer_fd = keeper.signal_fd = keeper.listen_fd = -1;
    for (int i = 0; i < MAX_CLIENTS; i++)
        keeper.clients[i] = -1;
    failure = start_keeper(&keeper, leaf);
    if (failure.error) {
        report_start(&keeper, failure);
        return 1;
    }
    while (keeper.phase != ENDED)
        serve_round(&keeper);
    return finish(&keeper);
}
