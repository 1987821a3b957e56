"""nftables by libnftables, in this process: whole batches that the kernel takes at once or not at all.

Renders nothing: the text comes from host_agent/network.py, made of checked values. Never `flush ruleset`: other
software's tables live beside ours. A rejected batch is a HostFault: fail closed. Called by host_agent/network.py, the
reaper, `nimbus doctor` and host/inventory.py, in any thread; docs/decisions/0021 says why no `nft` is started.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_GETTABLE, NFT_MSG_NEWTABLE, nft_table_msg
from pyroute2.netlink.nlsocket import NetlinkSocket

from nimbus.host import native
from nimbus.model.errors import HostFault

LIBRARY = "libnftables.so.1"
_TURN_LIMIT_S = 3.0  # a third of what a release may take in all; a batch takes a millisecond
_OWN = Path("/proc/thread-self/ns/net")
_INET = 1  # NFPROTO_INET of linux/netfilter.h: the family of all tables of ours
_SUBSYSTEM = NFNL_SUBSYS_NFTABLES << 8

# One at a time: the library keeps a list of links, and libc its last answer about protocols, for the whole process.
_turn = threading.Lock()
_changing_turn = threading.Lock()
# The host's own context stays open: closing its socket waits until the kernel has freed what was deleted by it.
_kept: list[_Context] = []


class _Context:
    """The library's state, and its socket, for one namespace. Never freed by itself."""

    def __init__(self, netns: Path) -> None:
        self._library = _load()
        opener = ctypes.cast(self._library.nft_ctx_new, ctypes.c_void_p).value
        assert opener is not None  # noqa: S101 (a function that was loaded has an address; for the type checker)
        try:
            with _open_file(netns) as netns_fd:
                # Its socket is not CLOEXEC: whoever starts a process here has subprocess close what it does not pass.
                self._address = native.open_nft(netns_fd, opener)
        except OSError as error:
            raise HostFault(f"nftables could not be reached ({error.strerror})") from error
        if self._library.nft_ctx_buffer_output(self._address) or self._library.nft_ctx_buffer_error(self._address):
            self.close()
            raise HostFault("nftables could not be reached (out of memory)")

    def run(self, text: str) -> None:
        # In one line: of several the library shows the first, whichever was wrong.
        line = text.replace("\n", ";").encode()
        failed = self._library.nft_run_cmd_from_buffer(self._address, line)
        told = self._library.nft_ctx_get_error_buffer(self._address)
        if failed:
            raise HostFault(f"the kernel rejected an nftables batch: {parse_error(told.decode(errors='replace'))}")

    def close(self) -> None:
        self._library.nft_ctx_free(self._address)


def apply_ruleset(text: str, *, netns: Path | None = None) -> None:
    """Load one batch, free of comments, in the namespace whose path is given or in the host's own."""
    with _in_turn():
        if netns is not None:
            with closing(_Context(netns)) as inside:
                inside.run(text)
            return
        context = _kept.pop() if _kept else _Context(_OWN)
        try:
            context.run(text)
        except BaseException:
            context.close()  # its socket may still hold answers to what failed
            raise
        _kept.append(context)


def remove_table(name: str, *, netns: Path | None = None) -> None:
    """Delete a table with all in it; absent is success (`add` before `delete`, in one batch)."""
    apply_ruleset(render_removal(name), netns=netns)


def render_removal(name: str) -> str:
    """The lines that delete a table whether it exists or not."""
    return f"add table inet {name}\ndelete table inet {name}\n"


def list_tables(prefix: str, *, netns: Path | None = None) -> tuple[str, ...]:
    """Names of the tables that begin with `prefix`.

    Asked of the kernel: libnftables reads every rule of every table for it, three seconds where 200 VMs live.
    """
    ask = nft_table_msg()
    ask["nfgen_family"] = _INET
    try:
        with _open_socket(netns) as asked:
            asked.register_policy({_SUBSYSTEM | NFT_MSG_NEWTABLE: nft_table_msg})
            tables = asked.nlm_request(ask, _SUBSYSTEM | NFT_MSG_GETTABLE, NLM_F_REQUEST | NLM_F_DUMP)
            names = [str(table.get_attr("NFTA_TABLE_NAME")) for table in tables]
    except NetlinkError as error:
        raise HostFault(f"the tables could not be listed ({os.strerror(error.code)})") from error
    except OSError as error:
        raise HostFault(f"the tables could not be listed ({error.strerror})") from error
    return tuple(sorted(name for name in names if name.startswith(prefix)))


def ensure_context() -> None:
    """Open what stays open, so that who looks at the descriptors of this process sees the same before and after."""
    apply_ruleset("")


def is_installed() -> bool:
    """Whether this process finds the library."""
    try:
        _load()
    except HostFault:
        return False
    return True


def parse_error(told: str) -> str:
    """Pure: the first fault in one line. The library tells it, then the batch, then a mark below the words it means."""
    fault, batch, mark, *_ = [*told.splitlines(), "", "", ""]
    words = batch[mark.find("^") : mark.rfind("^") + 1] if "^" in mark else ""
    return (fault or "no cause was given") + (f" at {words!r}" if words else "")


@contextmanager
def _in_turn() -> Iterator[None]:
    """One after the other. Who waits in vain opens a new queue for all that come later: one that hangs in the kernel,
    with a context that nobody else has, must not hold up every other VM's network."""
    global _turn  # noqa: PLW0603 (what every thread waits for, as the library is one for all)
    while True:
        turn = _turn
        if not turn.acquire(timeout=_TURN_LIMIT_S):
            with _changing_turn:
                if _turn is turn:
                    _turn = threading.Lock()
            continue
        try:
            if turn is _turn:
                yield
                return
        finally:
            turn.release()


def _open_socket(netns: Path | None) -> Any:  # pyroute2's, which carries no types
    if netns is None:
        return NetlinkSocket(family=NETLINK_NETFILTER)
    with _open_file(netns) as netns_fd:
        fd = native.netns_socket(netns_fd, socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_NETFILTER)
    return NetlinkSocket(family=NETLINK_NETFILTER, fileno=fd)


@contextmanager
def _open_file(netns: Path) -> Iterator[int]:
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@cache
def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise HostFault(f"{LIBRARY} was not found: install the Debian package libnftables1") from error
    for name, result, arguments in (
        ("nft_ctx_free", None, []),
        ("nft_ctx_buffer_output", ctypes.c_int, []),
        ("nft_ctx_buffer_error", ctypes.c_int, []),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, []),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [ctypes.c_char_p]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = [ctypes.c_void_p, *arguments]
    return library


def _start_over() -> None:
    """In the child of a fork: the socket is the parent's, and so is the thread that may have had the turn."""
    global _turn, _changing_turn
    _turn, _changing_turn = threading.Lock(), threading.Lock()
    _kept.clear()


os.register_at_fork(after_in_child=_start_over)
