"""The system calls that the fakes make and Python has no names for. Linux, x86-64; needs root where the kernel does."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct

CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID = 0x20000, 0x40000000, 0x20000000
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 15, 22, 38
_SECCOMP_MODE_FILTER = 2
_MS_BIND, _MS_REC, _MS_SLAVE, _MNT_DETACH = 0x1000, 0x4000, 0x80000, 2
_PIVOT_ROOT = 155
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


_ALLOW_ALL = (_Instruction * 1)(_Instruction(0x06, 0, 0, 0x7FFF0000))  # return SECCOMP_RET_ALLOW


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def name_thread(name: str) -> None:
    """What /proc shows as this thread's comm."""
    _check(_LIBC.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0))


def die_with_parent() -> None:
    """SIGKILL comes when the parent ends, also after an exec."""
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def forbid_new_privileges() -> None:
    """Of this thread and those it starts from now on."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def filter_nothing() -> None:
    """A seccomp filter that lets everything through: this thread's Seccomp is 2, as a jailed VMM's must be."""
    program = _Program(1, ctypes.cast(_ALLOW_ALL, ctypes.POINTER(_Instruction)))
    _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def enter(namespace_fd: int, kind: int) -> None:
    _check(_LIBC.setns(namespace_fd, kind))


def leave(kind: int) -> None:
    """Take a new namespace of this kind."""
    _check(_LIBC.unshare(kind))


def pivot(folder: str) -> None:
    """`folder` becomes the root, in a mount namespace of our own; nothing of the old one stays."""
    leave(CLONE_NEWNS)
    _check(_LIBC.mount(None, b"/", None, _MS_SLAVE | _MS_REC, None))
    _check(_LIBC.mount(folder.encode(), folder.encode(), None, _MS_BIND | _MS_REC, None))
    os.chdir(folder)
    os.mkdir("old_root", 0o755)
    _check(_LIBC.syscall(_PIVOT_ROOT, b".", b"old_root"))
    os.chdir("/")
    _check(_LIBC.umount2(b"old_root", _MNT_DETACH))
    os.rmdir("old_root")


def open_tap(name: str) -> int:
    """The tap of this netns. Raises OSError: EBUSY where somebody holds it, EPERM where there is none."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    except OSError:
        os.close(fd)
        raise
    return fd
