"""`nimbus run`: one command in one fresh microVM, as if it ran here. Needs no service.

Composes the host agent's lifecycle with a local lease: the VM lives as long as this process holds a
pipe open, so even SIGKILL of this process ends it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial

import click
import trio

from nimbus.cli.events import quiet_events
from nimbus.host import caps
from nimbus.host_agent.build import Host
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.leash import open_leash
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import Order, run_machine
from nimbus.host_agent.settings import HostSettings, find_host, read_settings
from nimbus.host_agent.ties import Ties
from nimbus.host_agent.vmm.machine import KeeperTerms, Machine
from nimbus.model.errors import Gone, HostFault, Refused
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Command, Ending, Shape, Usage
from nimbus.storage.content import ImageStore
from nimbus.storage.images import Image, resolve_image
from nimbus.wire.vmjson import render_attestation

_SIZE = re.compile(r"([0-9]+)\s*([kmgt]?)i?b?", re.IGNORECASE)
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNITS = {"": 20, "k": 10, "m": 20, "g": 30, "t": 40}  # a bare number is MiB, as the VMMs read it


class LocalLease:
    """A lease of nobody: it lasts until the pipe's write end, held by this process alone, is closed."""

    key: LeaseKey | None = None

    def __init__(self, orphan_fd: int) -> None:
        self.stop = trio.Event()
        self._orphan_fd = orphan_fd

    def terms(self) -> KeeperTerms:
        return KeeperTerms(deadline_ns=None, orphan_fd=self._orphan_fd)

    def note_started(self) -> None:
        """Nobody asks."""

    def note_usage(self, usage: Usage) -> None:
        """Nobody asks."""

    async def follow(self, machine: Machine, record: OpenRecord) -> None:
        await trio.sleep_forever()


@contextmanager
def open_local_lease() -> Iterator[LocalLease]:
    """See LocalLease."""
    with open_leash() as leash_fd:
        yield LocalLease(leash_fd)


class TerminalSink:
    """The command's output, byte for byte, on our own stdout and stderr."""

    def __init__(self, stdout_fd: int, stderr_fd: int) -> None:
        self._fds = {"stdout": stdout_fd, "stderr": stderr_fd}
        self.reader_left = False

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        """Returns when the kernel has taken every byte. Where nobody takes them, the run has no purpose left and ends:
        Gone for a reader that went away, HostFault for anything else."""
        try:
            await trio.to_thread.run_sync(partial(_write_all, self._fds[stream], data), abandon_on_cancel=True)
        except BrokenPipeError:
            self.reader_left = True
            raise Gone(f"the reader of {stream} went away") from None
        except OSError as error:
            raise HostFault(f"cannot write the command's {stream}: {error.strerror}") from error
        return offset + len(data)

    async def flush(self) -> None:
        """Nothing is held back."""
        await trio.lowlevel.checkpoint()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def parse_mib(text: str) -> int:
    """`512`, `512M`, `1G` as MiB. Raises Refused for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Refused(f"{text!r} is no size: 512M and 2G are")
    return (int(match[1]) << _UNITS[match[2].lower()]) >> 20


def parse_env(pairs: tuple[str, ...]) -> dict[str, str]:
    """`K=V` words; a bare `K` takes the value it has here, as docker does."""
    env = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not name:
            raise Refused(f"--env {pair!r}: NAME=VALUE is needed")
        if sign:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--image", default="base", show_default=True, help="What the VM boots; `nimbus assets list` shows them.")
@click.option("--cpus", default=1, show_default=True, help="vCPUs.")
@click.option("--memory", default="256M", show_default=True, help="Guest memory, like 512M or 2G.")
@click.option("--disk", default="2G", show_default=True, help="Size of the throw-away disk, like 10G (sparse).")
@click.option("--env", "-e", "env", multiple=True, metavar="K=V", help="Environment of the command; repeatable.")
@click.option("--workdir", "-w", default="/", show_default=True, help="Working folder in the guest.")
@click.option("--user", "-u", default="root", show_default=True, help="User in the guest.")
@click.option("--timeout", type=float, default=None, metavar="S", help="Seconds; then SIGTERM, grace, SIGKILL, 124.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; the command's output on stderr.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but what the command says.")
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
def run(  # noqa: PLR0913, PLR0917 - one parameter for each option: click's own shape
    image: str,
    cpus: int,
    memory: str,
    disk: str,
    env: tuple[str, ...],
    workdir: str,
    user: str,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    cmd: tuple[str, ...],
) -> None:
    """Run CMD in a fresh microVM and exit with its status.

    \b
    nimbus run -- uname -r                        the guest's kernel
    nimbus run -- sh -c 'exit 7'                  exits 7
    nimbus run --memory 1G -e WHO=you -- sh -c 'echo "hello $WHO"'
    nimbus run --json -- true                     where the milliseconds went

    The VM is thrown away afterwards, whatever happens: Ctrl-C, SIGTERM, even SIGKILL of this command.
    Exit status: the command's; 124 after --timeout; 125 where Nimbus or the host failed; 2 for bad usage.
    """
    quiet_events()
    settings = read_settings(HostSettings)
    host = find_host(settings)
    command = Command(cmd, parse_env(env), workdir, user, timeout, settings.vm_shutdown_grace)
    shape = Shape(cpus, parse_mib(memory), parse_mib(disk))
    _check_host(host)
    found = _resolve(host, image)
    if not quiet:
        click.echo(f"nimbus: {found.name if found else 'no image'} on {host.choice.label}", err=True)
    sink = TerminalSink(2 if as_json else 1, 2)
    outcome, signum = run_until_signal(host, shape, found, command, sink)
    _tell(host, outcome, signum, as_json)
    sys.exit(exit_status(outcome, signum))


def _tell(host: Host, outcome: Outcome | None, signum: int | None, as_json: bool) -> None:
    """What a person, or the program that reads our JSON, must know of the end."""
    if as_json:
        click.echo(json.dumps(render_outcome(host, outcome, signum)))
    elif outcome is not None and signum is None:
        for line in filter(None, (outcome.cause, outcome.exit.message if outcome.exit else "")):
            click.echo(f"nimbus: {line}", err=True)
        if outcome.ending is Ending.OUT_OF_MEMORY or (outcome.exit and outcome.exit.status and outcome.exit.oom_kills):
            click.echo("nimbus: run it again with more: --memory SIZE", err=True)
    if outcome is not None and not outcome.clean:
        click.echo(f"nimbus: VM {outcome.vm} left something behind; run `nimbus vms purge {outcome.vm}`", err=True)


def exit_status(outcome: Outcome | None, signum: int | None) -> int:
    """Pure: one number for the shell."""
    if signum is not None:
        return 128 + signum
    if outcome is None or outcome.exit is None:
        return 125
    return outcome.exit.status


def render_outcome(host: Host, outcome: Outcome | None, signum: int | None) -> dict[str, object]:
    """Pure: the JSON of a run."""
    body: dict[str, object] = {
        "backend": host.choice.vmm.name,
        "accel": host.choice.accel,
        "status": exit_status(outcome, signum),
    }
    if outcome is not None:
        body |= {
            "vm": str(outcome.vm),
            "ending": str(outcome.ending),
            "exit_code": outcome.exit.code if outcome.exit else None,
            "signal": outcome.exit.signal if outcome.exit else None,
            "cause": outcome.cause,
            "message": outcome.exit.message if outcome.exit else "",
            "boots": outcome.boots,
            "clean": outcome.clean,
            "phases_ms": outcome.phases_ms,
            "attestation": render_attestation(outcome.attestation) if outcome.attestation else None,
        }
    return body


def _check_host(host: Host) -> None:
    missing = caps.missing_for_vm(qemu=host.choice.vmm.name == "qemu")
    if missing:
        raise HostFault("; ".join(missing))


def _resolve(host: Host, image: str) -> Image | None:
    if not host.choice.vmm.needs_guest_files:
        return None
    store = ImageStore(host.layout.images)
    return resolve_image(store, image, kernel=host.kernel_override, rootfs=host.rootfs_override)


def note_signals() -> tuple[list[int], list[signal.Signals]]:
    """From here on the signals that end a run are noted in the list, and do nothing else by themselves.

    SIGINT and SIGHUP stay ignored where our caller had them ignored (nohup, a script's background job): the second
    value lacks them.
    """
    caught: list[int] = []
    unheeded = {signum for signum in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(signum) is signal.SIG_IGN}
    heeded = [signum for signum in ENDING_SIGNALS if signum not in unheeded]
    for signum in heeded:
        signal.signal(signum, lambda number, _: caught.append(number))
    return caught, heeded


def run_until_signal(
    host: Host, shape: Shape, image: Image | None, command: Command, sink: TerminalSink
) -> tuple[Outcome | None, int | None]:
    """The outcome, or the signal that ended the run before there was one. Either way nothing is left."""
    caught, heeded = note_signals()
    outcome = trio.run(_run, host, Order(shape, image, _giving(command), Ties(_opening(sink))), caught, heeded)
    for signum in heeded:
        signal.signal(
            signum, signal.SIG_IGN
        )  # all is done: another Ctrl-C must not change the status that we exit with
    if sink.reader_left:
        caught.append(signal.SIGPIPE)  # what would have ended the command on this host
    return outcome, caught[0] if caught else None


async def _run(host: Host, order: Order, caught: list[int], heeded: list[signal.Signals]) -> Outcome | None:
    scope = trio.CancelScope()  # around the run alone: whoever hears the signals must live until teardown is over
    outcome: Outcome | None = None
    with open_local_lease() as lease, trio.open_signal_receiver(*heeded) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hear_signals, signals, caught, scope)
            if caught:
                scope.cancel()
            with scope:
                outcome = await run_machine(host, order, lease)
            nursery.cancel_scope.cancel()
    return outcome


async def _hear_signals(signals: AsyncIterator[int], caught: list[int], scope: trio.CancelScope) -> None:
    """The first signal cancels the run, and teardown follows; later ones are heard and change nothing."""
    async for signum in signals:
        caught.append(signum)
        scope.cancel()


def _giving(command: Command) -> Callable[[], Awaitable[Command]]:
    async def give() -> Command:  # noqa: ASYNC124 - a lease's command comes over the network, this one is here
        return command

    return give


def _opening(sink: TerminalSink) -> Callable[[OpenRecord], AbstractAsyncContextManager[OutputSink]]:
    @asynccontextmanager
    async def open_sink(_: OpenRecord) -> AsyncIterator[OutputSink]:
        yield sink

    return open_sink
