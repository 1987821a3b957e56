"""The C library behind host/: the only importer of `_native`, the only place where -errno becomes OSError.

Every call is synchronous and short (at most some milliseconds; `tsc_khz` takes ten); rooms call them in
threads. No call changes the namespace of the calling thread. Called by host/ and by rooms that measure.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

try:
    from nimbus.host import _native
except ImportError as error:  # pragma: no cover - a broken checkout
    raise ImportError("nimbus/host/_native is not built: run `make build` (or pip install) first") from error

_WORD_BITS = 64
_MAX_WORDS = 128  # 8192 CPUs, the most that a kernel can be built for


def _check(result: int, path: str | Path | None = None) -> int:
    """The result itself, or the OSError that -errno stands for."""
    if result >= 0:
        return result
    raise OSError(-result, os.strerror(-result), *([] if path is None else [str(path)]))


def create_netns(path: str | Path) -> None:
    """A new network namespace held by the file `path`; FileExistsError where that is there already."""
    _check(_native.lib.nb_create_netns(os.fsencode(path)), path)


def remove_netns(path: str | Path) -> None:
    """Absent is success. The namespace ends when its last process, socket and mount are gone."""
    _check(_native.lib.nb_remove_netns(os.fsencode(path)), path)


def open_tap(netns_fd: int, name: str, uid: int, gid: int, persist: bool) -> int:
    """Makes (or opens) a tap with a virtio-net header inside the namespace; the descriptor is the caller's."""
    return _check(_native.lib.nb_open_tap(netns_fd, name.encode(), uid, gid, int(persist)))


def netns_socket(netns_fd: int, domain: int, kind: int, protocol: int = 0) -> int:
    """A socket that lives in the namespace, whoever uses it; the descriptor is the caller's."""
    return _check(_native.lib.nb_netns_socket(netns_fd, domain, kind, protocol))


def open_nft(netns_fd: int, nft_ctx_new: int) -> int:
    """A new context of libnftables that speaks to the namespace, made by its `nft_ctx_new`; both are addresses."""
    context = _native.ffi.new("uintptr_t[1]")
    opener = _native.ffi.cast("void *(*)(uint32_t)", nft_ctx_new)
    _check(_native.lib.nb_open_nft(netns_fd, opener, _native.ffi.cast("void **", context)))
    return context[0]


def set_affinity(tid: int, cpus: Collection[int]) -> None:
    """Pins one thread (0: the calling one). OSError EINVAL where none of the CPUs is there."""
    words = [0] * (max(cpus, default=0) // _WORD_BITS + 1)
    for cpu in cpus:
        words[cpu // _WORD_BITS] |= 1 << (cpu % _WORD_BITS)
    _check(_native.lib.nb_set_affinity(tid, words, len(words)))


def get_affinity(tid: int) -> frozenset[int]:
    """The CPUs on which one thread (0: the calling one) may run."""
    words = _native.ffi.new(f"uint64_t[{_MAX_WORDS}]")
    _check(_native.lib.nb_get_affinity(tid, words, _MAX_WORDS))
    return frozenset(
        index * _WORD_BITS + bit for index in range(_MAX_WORDS) for bit in range(_WORD_BITS) if words[index] >> bit & 1
    )


def pidfd_open(pid: int) -> int:
    """Python's own exists only where its build saw new enough kernel headers, so this one is used everywhere."""
    return _check(_native.lib.nb_pidfd_open(pid))


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """ProcessLookupError where the process is dead and reaped."""
    _check(_native.lib.nb_pidfd_send_signal(pidfd, signal))


def tsc_khz() -> int:
    """The host's time stamp counter in kHz; guests under emulation are told it (`tsc_early_khz=`)."""
    return _check(_native.lib.nb_tsc_khz())
