"""What is learned of one machine while it lives, and what its end is called.

Values and pure judgements, no I/O. Filled by serve.py, attend.py and lifecycle.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import trio

from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.memory import explain_kills, judge_vmm_end, panicked_for_memory
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import read_shape
from nimbus.host_agent.usage import MemoryEvents
from nimbus.host_agent.vmm.fcexits import explain_exit
from nimbus.host_agent.vmm.machine import KeeperTerms, Machine
from nimbus.model.attestation import Attestation
from nimbus.model.errors import GuestFault, HostFault, NimbusError
from nimbus.model.ids import VmId
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Command, Ending, ExitReason, GuestExit, Usage
from nimbus.wire.keeper import VmmExit

PANIC = "Kernel panic"
_SIGKILL = 9


class Overtime(GuestFault):
    """The guest let its command run on: who is root in there can stop nimbus-init from ending it, but not us."""


class OutOfMemory(GuestFault):
    """The guest's kernel died for want of memory, or the host's ended the VMM for it."""


# Without an exit that was told; the most specific first.
_ENDINGS: tuple[tuple[type[NimbusError], Ending], ...] = (
    (Overtime, Ending.TIMED_OUT),
    (OutOfMemory, Ending.OUT_OF_MEMORY),
    (GuestFault, Ending.GUEST_CRASHED),
    (HostFault, Ending.HOST_FAULT),
)


class Lease(Protocol):
    """The right to run, as a machine's life needs it."""

    @property
    def key(self) -> LeaseKey | None:
        """What the control plane knows it by; None for a local run."""
        ...

    @property
    def stop(self) -> trio.Event:
        """Set when the command is to be ended politely."""
        ...

    def terms(self) -> KeeperTerms:
        """Until when the keeper may let the VM live, as of now."""
        ...

    def note_started(self) -> None:
        """The command runs now."""
        ...

    def note_usage(self, usage: Usage) -> None:
        """What the VM has used so far."""
        ...

    async def follow(self, machine: Machine, record: OpenRecord) -> None:
        """Move the keeper's deadline with every renewal, until cancelled."""
        ...


@dataclass
class Life:
    """What is learned of one machine while it lives."""

    phases: Phases
    record: OpenRecord
    command: Command | None = None
    adopted: bool = False  # an earlier agent booted it
    restored: bool = False  # its memory is a template's
    greeted: bool = False
    started: bool = False
    boots: int = 0
    exit: GuestExit | None = None
    error: NimbusError | None = None
    vmm_exit: VmmExit | None = None
    console: bytes = b""
    memory: MemoryEvents = field(default_factory=MemoryEvents)  # of the VMM's cgroup, once it is gone
    heard: trio.CancelScope = field(default_factory=trio.CancelScope)
    heard_at: float = math.inf  # the guest's last word
    starved: bool = False  # the host's disk is full, so the VMM halted the VM
    latest: float = math.inf  # when the command's time is over by the host's own clock
    undone: bool = False  # teardown has run
    clean: bool = False  # and left nothing

    @property
    def mem_mib(self) -> int:
        """What its guest was given."""
        return read_shape(self.record.value.plan).mem_mib

    def may_be_left(self) -> bool:
        """Whether the next agent can take it over: its guest was heard, and it has not ended."""
        return (self.greeted or self.adopted) and self.exit is None and self.error is None


@dataclass(frozen=True)
class Outcome:
    """How a machine's life ended, for the terminal, the control plane and the bench."""

    vm: VmId
    ending: Ending
    exit: GuestExit | None
    cause: str
    phases_ms: dict[str, float]
    clean: bool  # nothing is left on the host
    boots: int
    attestation: Attestation | None = None  # None: it came to no boot, or this backend gives a guest no files


def judge(told: GuestExit | None, error: NimbusError | None) -> Ending:
    """Pure: one terminal word for how it ended."""
    if told is not None:
        return _judge_exit(told)
    for kind, ending in _ENDINGS:
        if isinstance(error, kind):
            return ending
    return Ending.HOST_FAULT if error is None else Ending.CANCELLED


def _judge_exit(told: GuestExit) -> Ending:
    if told.reason is ExitReason.TIMEOUT:
        return Ending.TIMED_OUT
    if told.reason is ExitReason.STOPPED:
        return Ending.CANCELLED
    if told.status == 0:
        return Ending.DONE
    killed = told.signal == _SIGKILL or told.code == 128 + _SIGKILL  # itself, or the child its shell waited for
    return Ending.OUT_OF_MEMORY if killed and told.oom_kills else Ending.FAILED


def describe_cause(life: Life) -> str:
    """Pure: what a person is told of the end; nothing where the exit says it all."""
    if life.exit is not None:
        return explain_kills(life.exit, life.mem_mib)
    return "" if life.error is None else str(life.error)


def judge_memory(life: Life, mem_mib: int) -> NimbusError | None:
    """Pure: the end of a VMM that is gone, where memory was its cause."""
    if life.vmm_exit is None:
        return None
    verdict = judge_vmm_end(life.vmm_exit, life.memory, mem_mib)
    if verdict is not None:
        ending, cause = verdict
        return OutOfMemory(cause) if ending is Ending.OUT_OF_MEMORY else HostFault(cause)
    if any(PANIC in line and panicked_for_memory(line) for line in _console_lines(life)):
        return OutOfMemory(describe_end(life, f"the guest had no memory left ({mem_mib} MiB)"))
    return None


def describe_end(life: Life, what: str) -> str:
    """Pure: `what`, how the VMM ended, and the console's most telling line."""
    lines = _console_lines(life)
    panic = [line for line in lines if PANIC in line]
    ended = ""
    if life.vmm_exit is not None:
        told = life.vmm_exit
        ended = f"; the VMM {told.kind} {told.code if told.code is not None else ''} ({told.reason or 'no word left'})"
        if words := explain_exit(life.record.value.backend, told):
            ended = f"{ended}: {words}"
    if panic:
        return f"{what}{ended}; its kernel died: {panic[0].strip()}"
    return f"{what}{ended}" + (f"; console ends: {' | '.join(lines[-8:])}" if lines else "")


def _console_lines(life: Life) -> list[str]:
    """A guest writes there what it likes: nothing of it may steer a terminal or be refused by a database."""
    return [
        "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
        for line in life.console.decode(errors="replace").splitlines()
    ]
