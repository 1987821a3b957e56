/* nimbus-kvm DEVICE IMAGE PATIENCE: whether KVM really runs a guest, told as one line of JSON.
 *
 * Makes a VM, boots the tiny guest of probe.S in it and times its loop against the same loop on the host. Judges
 * nothing: nimbus/host/kvm.py reads the line, and kills this process where KVM hangs. PATIENCE is how many times the
 * host's own time the guest may take for its loop; then it is stopped where it is. Times are this thread's CPU time,
 * a guest's included, so a busy host tells the same story as an idle one.
 */
#include "machine.h"
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TRIES 3
#define BILLION 1000000000ll
#define PATIENCE_MAX 1000

struct report {
    const char *step; /* that failed, NULL where none did */
    int error;        /* its errno, 0 where it has none */
    int api;
    int64_t create_ns;
    int64_t host_ns;
    int64_t guest_ns;
    uint64_t counted;
};

static struct machine guest = {.vcpu = -1};

static int64_t read_clock(clockid_t clock)
{
    struct timespec now;
    (void)clock_gettime(clock, &now); /* cannot fail with a clock that is there */
    return now.tv_sec * BILLION + now.tv_nsec;
}

/* The guest's loop, to the letter. */
static void count_down(void)
{
    uint32_t left = PROBE_LOOP;
    __asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(left) : : "cc");
}

/* The least disturbed of some tries. */
static int64_t time_host(void)
{
    int64_t best = INT64_MAX;
    for (int i = 0; i < TRIES; i++) {
        int64_t start = read_clock(CLOCK_THREAD_CPUTIME_ID);
        count_down();
        int64_t took = read_clock(CLOCK_THREAD_CPUTIME_ID) - start;
        if (took < best)
            best = took;
    }
    return best;
}

/* The signal may arrive just before KVM_RUN: the flag makes that return at once too. */
static void on_time_up(int signal)
{
    (void)signal;
    guest.run->immediate_exit = 1;
}

static int set_patience(int64_t ns)
{
    struct sigaction action = {.sa_handler = on_time_up};
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    struct itimerspec span = {.it_value = {.tv_sec = ns / BILLION, .tv_nsec = ns % BILLION}};
    timer_t timer;
    if (sigaction(SIGALRM, &action, NULL) < 0 || timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) < 0 ||
        timer_settime(timer, 0, &span, NULL) < 0)
        return -errno;
    return 0;
}

static void fail(struct report *report, const char *step, int error)
{
    report->step = step;
    report->error = -error;
}

/* From the guest's first word to the end of its loop, or of our patience. */
static void time_guest(struct report *report, int patience)
{
    if (run_until(&guest, "nimbus-probe: up\n") != STOP_SPEECH) {
        fail(report, "boot", guest.error);
        return;
    }
    int error = set_patience(report->host_ns * patience);
    if (error < 0) {
        fail(report, "timer", error);
        return;
    }
    int64_t start = read_clock(CLOCK_THREAD_CPUTIME_ID);
    enum stop stop = run_until(&guest, "\nn"); /* the first letter after the loop: its line takes exits of its own */
    report->guest_ns = read_clock(CLOCK_THREAD_CPUTIME_ID) - start;
    uint64_t left = 0;
    if (stop == STOP_TIME)
        error = read_counter(&guest, &left);
    else if (stop != STOP_SPEECH)
        error = guest.error;
    if (error < 0 || (stop != STOP_TIME && stop != STOP_SPEECH))
        fail(report, "count", error);
    else
        report->counted = left <= PROBE_LOOP ? PROBE_LOOP - left : 0;
}

/* The first VM of a host switches virtualisation on, which is not the price of the next one: the second is timed. */
static void time_creation(struct report *report, int kvm)
{
    int64_t start = read_clock(CLOCK_MONOTONIC);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0ul);
    report->create_ns = read_clock(CLOCK_MONOTONIC) - start;
    if (vm < 0)
        fail(report, "create", -errno);
    else
        close(vm);
}

static void probe(struct report *report, const char *device, const char *image, int patience)
{
    uint64_t entry = 0;
    int error;
    int kvm = open(device, O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        fail(report, "open", -errno);
        return;
    }
    report->api = ioctl(kvm, KVM_GET_API_VERSION, 0ul);
    int vm = report->api == KVM_API_VERSION ? ioctl(kvm, KVM_CREATE_VM, 0ul) : -1;
    int run_bytes = vm < 0 ? -1 : ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0ul);
    if (vm < 0 || run_bytes < (int)sizeof(struct kvm_run)) {
        fail(report, report->api == KVM_API_VERSION ? "create" : "api", -errno);
        return;
    }
    error = make_machine(vm, (size_t)run_bytes, &guest);
    if (error < 0) {
        fail(report, "machine", error);
        return;
    }
    error = load_image(image, guest.memory, &entry);
    if (error < 0) {
        fail(report, "image", error);
        return;
    }
    error = set_entry(&guest, entry);
    if (error < 0) {
        fail(report, "machine", error);
        return;
    }
    report->host_ns = time_host();
    time_guest(report, patience);
    if (report->step == NULL)
        time_creation(report, kvm);
}

int main(int argc, char **argv)
{
    long patience = argc == 4 ? strtol(argv[3], NULL, 10) : 0;
    if (patience < 1 || patience > PATIENCE_MAX) {
        (void)fprintf(stderr, "usage: nimbus-kvm DEVICE IMAGE PATIENCE\n");
        return 64;
    }
    struct report report = {.step = NULL};
    probe(&report, argv[1], argv[2], (int)patience);
    (void)printf("{\"step\": \"%s\", \"errno\": %d, \"exit_reason\": %" PRIu32 ", \"api\": %d, \"create_ns\": %" PRId64
                 ", \"host_ns\": %" PRId64 ", \"guest_ns\": %" PRId64 ", \"counted\": %" PRIu64 ", \"loop\": %d}\n",
                 report.step == NULL ? "" : report.step, report.error, guest.exit_reason, report.api,
                 report.create_ns, report.host_ns, report.guest_ns, report.counted, PROBE_LOOP);
    return fflush(stdout) == 0 ? 0 : 74;
}
