/* See oom.h. */
#include "oom.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VMSTAT_BYTES 32768 /* some 5 KiB on today's kernels */
#define KEY "oom_kill "

static char text[VMSTAT_BYTES + 1];

int oom_open_guest(void)
{
	return open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
}

int oom_open_double(const char *path)
{
	return open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
}

uint64_t oom_count(int fd)
{
	size_t length = 0;
	ssize_t got;

	if (fd < 0)
		return 0;
	while (length < VMSTAT_BYTES && (got = pread(fd, text + length, VMSTAT_BYTES - length, (off_t)length)) > 0)
		length += (size_t)got;
	text[length] = 0;
	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, KEY, strlen(KEY)) == 0)
			return strtoull(line + strlen(KEY), NULL, 10);
	}
	return 0;
}

uint16_t oom_count_since(int fd, uint64_t before)
{
	uint64_t now = oom_count(fd);
	uint64_t count = now > before ? now - before : 0;

	return (uint16_t)(count < UINT16_MAX ? count : UINT16_MAX);
}
