/* Processes that the kernel killed for want of memory, as it counts them in vmstat. */
#ifndef NIMBUS_GUEST_OOM_H
#define NIMBUS_GUEST_OOM_H

#include <stdint.h>

/* A descriptor of the guest's own counters, to be opened before there is a job: a job that is root can put what it likes
 * in front of /proc, and a name opened later could be a pipe that never answers. -1 where there are none. */
int oom_open_guest(void);
/* The same of a file that stands for them in a host double, made empty where it is not there: the host's own counters
 * would tell of strangers. -1 where it cannot be. */
int oom_open_double(const char *path);
/* Kills so far; 0 where they cannot be read. */
uint64_t oom_count(int fd);
/* Kills since there were `before`, as the link tells them: 65535 stands for more. */
uint16_t oom_count_since(int fd, uint64_t before);

#endif
