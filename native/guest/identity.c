/* See identity.h. */
#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "console.h"

#define NS_PER_S 1000000000ULL
#define MACHINE_ID "/etc/machine-id"

int identity_set_clock(uint64_t wall_clock_ns)
{
	const struct timespec now = {(time_t)(wall_clock_ns / NS_PER_S), (long)(wall_clock_ns % NS_PER_S)};
	int error;

	if (wall_clock_ns == 0 || clock_settime(CLOCK_REALTIME, &now) == 0)
		return 0;
	error = -errno;
	say("cannot set the clock: %s", strerror(-error));
	return error;
}

/* The reseed makes every processor's generator forget its old key: clones of one template share that. */
int identity_add_entropy(const uint8_t entropy[ENTROPY_BYTES])
{
	struct {
		struct rand_pool_info head;
		uint8_t bytes[ENTROPY_BYTES];
	} pool = {.head = {.entropy_count = ENTROPY_BYTES * 8, .buf_size = ENTROPY_BYTES}};
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	int error = 0;

	memcpy(pool.bytes, entropy, ENTROPY_BYTES);
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) != 0 || ioctl(fd, RNDRESEEDCRNG) != 0) {
		error = -errno;
		say("no fresh randomness: %s", strerror(-error));
	}
	explicit_bzero(&pool, sizeof pool);
	if (fd >= 0)
		close(fd);
	return error;
}

int identity_open(void)
{
	static const char NONE_YET[] = "uninitialized\n"; /* as machine-id(5) has it */
	int fd = open(MACHINE_ID, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);

	if (fd < 0 || write(fd, NONE_YET, sizeof NONE_YET - 1) < 0)
		say("cannot write " MACHINE_ID ": %s", strerror(errno));
	return fd;
}

/* 32 small hex digits and a line's end. */
static int write_machine_id(int fd, const uint8_t id[MACHINE_ID_BYTES])
{
	static const char DIGITS[] = "0123456789abcdef";
	char line[2 * MACHINE_ID_BYTES + 1];
	int error;

	for (int n = 0; n < MACHINE_ID_BYTES; n++) {
		line[2 * n] = DIGITS[id[n] >> 4];
		line[2 * n + 1] = DIGITS[id[n] & 15];
	}
	line[sizeof line - 1] = '\n';
	errno = ENOSPC; /* of a write that is cut short */
	if (pwrite(fd, line, sizeof line, 0) == (ssize_t)sizeof line)
		return 0;
	error = -errno;
	say("cannot write " MACHINE_ID ": %s", strerror(-error));
	return error;
}

bool identity_take(int machine_id_fd, const struct prepare *prepare)
{
	int error = identity_add_entropy(prepare->entropy);

	error |= identity_set_clock(prepare->wall_clock_ns);
	error |= write_machine_id(machine_id_fd, prepare->machine_id);
	return error == 0;
}
