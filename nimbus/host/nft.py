"""nftables through the `nft` binary: whole batches that the kernel takes at once or not at all.

Renders nothing: the text comes from host_agent/network.py, made of checked values. Never a shell, never
`flush ruleset`: other software's tables live beside ours. A rejected batch is a HostFault: fail closed.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nimbus.model.errors import HostFault

# nft waits for the kernel's nftables lock; past this the host is sick and the caller must undo.
BATCH_LIMIT_S = 10.0
_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_NOT_FOUND = "nft was not found: install the Debian package nftables"


def apply_ruleset(text: str, *, netns: Path | None = None) -> None:
    """Load one batch, in the namespace whose path is given or in the host's own."""
    with applying_ruleset(text, netns=netns):
        pass


@contextmanager
def applying_ruleset(text: str, *, netns: Path | None = None) -> Iterator[None]:
    """Load one batch while the block does other work; leaving the block waits for the kernel's answer.

    A start of `nft` costs more than all netlink calls of a VM together, so those run meanwhile.
    """
    process = _start(["-f", "-"], netns)
    try:
        stdin = process.stdin
        assert stdin is not None  # noqa: S101 (asked for with PIPE; for the type checker)
        try:
            stdin.write(text.encode())
            stdin.close()
        except BrokenPipeError:
            pass  # nft ended early; its exit status tells why
        process.stdin = None  # communicate() would flush a closed file
        yield
        _finish(process, "the kernel rejected an nftables batch")
    finally:
        _reap(process)


def remove_table(name: str, *, family: str = "inet", netns: Path | None = None) -> None:
    """Delete a table with all in it; absent is success (`add` before `delete`, in one batch)."""
    apply_ruleset(render_removal(name, family=family), netns=netns)


def render_removal(name: str, *, family: str = "inet") -> str:
    """The lines that delete a table whether it exists or not."""
    return f"add table {family} {name}\ndelete table {family} {name}\n"


def list_tables(prefix: str, *, family: str = "inet", netns: Path | None = None) -> tuple[str, ...]:
    """Names of the tables of one family that begin with `prefix`."""
    process = _start(["-j", "list", "tables"], netns)
    try:
        out = _finish(process, "the tables could not be listed")
    finally:
        _reap(process)
    tables = (entry["table"] for entry in json.loads(out)["nftables"] if "table" in entry)
    return tuple(sorted(t["name"] for t in tables if t["family"] == family and t["name"].startswith(prefix)))


def _start(args: list[str], netns: Path | None) -> subprocess.Popen[bytes]:
    inside = ["nsenter", f"--net={netns}", "--"] if netns is not None else []
    # A Ctrl-C at a terminal reaches every process of its group: one that hits nft would break an undo half-way. The
    # child inherits this thread's mask from its first moment on, as no process group of its own could.
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)
    try:
        return subprocess.Popen(
            [*inside, "nft", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise HostFault(_NOT_FOUND) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def _finish(process: subprocess.Popen[bytes], what: str) -> bytes:
    try:
        out, err = process.communicate(timeout=BATCH_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise HostFault(f"{what}: nft gave no answer in {BATCH_LIMIT_S:.0f} s") from error
    if process.returncode != 0:
        lines = err.decode(errors="replace").strip().splitlines()
        raise HostFault(f"{what}: {lines[0] if lines else f'nft ended with {process.returncode}'}")
    return out


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Leave neither a process nor a pipe behind, whatever happened in between."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
