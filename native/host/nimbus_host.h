/* What nimbus/host asks of Linux that Python cannot ask safely by itself.
 *
 * This header is the cffi cdef: build.py reads it and drops the lines that start with '#'.
 * Each function returns 0 (or a value that its line names) or -errno, keeps no globals and no memory,
 * calls nothing of Python back. Only nimbus/host/native.py calls them. No thread of the caller ever changes
 * its namespace: what must happen inside one is done by a thread made for it, which then ends.
 */
#ifndef NIMBUS_HOST_H
#define NIMBUS_HOST_H
#include <stddef.h>
#include <stdint.h>

/* A new network namespace, held by a bind mount on `path`, a file made here (-EEXIST where it is already). */
int nb_create_netns(const char *path);

/* The pair of nb_create_netns. Absent is success. */
int nb_remove_netns(const char *path);

/* A tap with a virtio-net header inside the namespace: returns its descriptor (CLOEXEC).
 * Persistent taps outlive the descriptor and end with the namespace. */
int nb_open_tap(int netns_fd, const char *name, uint32_t uid, uint32_t gid, int persist);

/* socket(2) inside the namespace: returns the descriptor (CLOEXEC). */
int nb_netns_socket(int netns_fd, int domain, int type, int protocol);

/* A context of libnftables, made by that library's own `nft_ctx_new` inside the namespace: it speaks to the
 * namespace from any thread, and is the caller's to free. */
int nb_open_nft(int netns_fd, void *(*nft_ctx_new)(uint32_t flags), void **context);

/* CPU masks as 64-bit words, CPU 0 in the lowest bit of word 0; `tid` 0 is the calling thread. */
int nb_set_affinity(int tid, const uint64_t *words, size_t count);
int nb_get_affinity(int tid, uint64_t *words, size_t count);

/* A descriptor (CLOEXEC) that names one process for good. */
int nb_pidfd_open(int pid);
int nb_pidfd_send_signal(int pidfd, int signal);

/* Rate of the time stamp counter in kHz, measured in about 10 ms; -ENOTSUP where there is none. */
int64_t nb_tsc_khz(void);

#endif
