"""Strikes one operation of a running agent with one fault, from outside: the product has no seam for it.

A trace function looks at every call of a Python function in every thread. Where the code object is the chosen
operation's, the fault happens right there: before its first line, or after its last with its answer lost. What
struck is written down before it strikes, so a fault that never happened is seen. Without a fault the tracer
records which operations happen at all. Called by agent.py in a process of the agent's own.
"""

from __future__ import annotations

import dis
import enum
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.faults.operations import fault_of, find_operation, find_peer
from tests.faults.ways import Way

DELAY_S = 0.3
HANG_S = 600.0  # longer than any run is given


class Kind(enum.StrEnum):
    """What happens to an operation."""

    ERROR = "error"  # it does nothing and fails
    HANG = "hang"  # it does nothing and never returns; of a peer that is asked: the peer freezes
    DELAY = "delay"
    PARTIAL = "partial"  # it is done, and its answer is lost
    KILL_BEFORE = "kill-before"  # SIGKILL of the agent
    KILL_AFTER = "kill-after"
    LOST = "lost"  # of a service, as the next three: it is done, and the connection is cut without a word
    UNAUTHORIZED = "401"
    LIMITED = "429"
    GARBAGE = "garbage"  # an answer that is none


CALL_KINDS = (Kind.ERROR, Kind.HANG, Kind.DELAY, Kind.PARTIAL, Kind.KILL_BEFORE, Kind.KILL_AFTER)
KILLS = (Kind.KILL_BEFORE, Kind.KILL_AFTER)


BEGIN = "host_agent.ledger.Ledger.create"  # where a machine's life begins; what happens before is the agent's start
CLAIM = "host_agent.pool.reserve.Reserve.claim"  # where a job asks for a machine that waits


@dataclass(frozen=True)
class Fault:
    """One operation, one kind, at one of the times that the operation happens (the first is 1)."""

    operation: str
    kind: Kind
    nth: int = 1
    at_start: bool = False  # of the agent, before there is a machine
    way: Way = Way.FAKE
    after: str = ""  # the times are counted from this operation's first on, itself included; empty: all are

    def __str__(self) -> str:
        way = "" if self.way is Way.FAKE else f"{self.way} "
        when = " (agent starts)" if self.at_start else " (claimed)" if self.after == CLAIM else ""
        return f"{way}{self.operation} {self.kind}{when}"


class Tracer:
    """Strikes with `fault`, or records operations where there is none. `fired` is a file made by the strike."""

    def __init__(self, fault: Fault | None, fired: Path) -> None:
        self.seen: dict[str, int] = {}
        self.at_start: dict[str, int] = {}  # how often each had happened when the machine's life began
        self.at_claim: dict[str, int] = {}  # and when a job first asked for a machine that waits
        self.returned: set[str] = set()  # where there is no fault: those that came to an answer
        self.is_async: dict[str, bool] = {}
        self._fault = fault
        self._fired = fired
        self._names: dict[CodeType, str | None] = {}
        self._lock = threading.Lock()
        self._struck = False
        self._since: dict[str, int] = {}  # as `seen`, from the operation on that the fault comes after
        self._is_counting = fault is None or not fault.after

    def install(self) -> None:
        """For this thread and every one that starts from now on."""
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)

    def _on_call(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        code = frame.f_code
        try:
            name = self._names[code]
        except KeyError:
            name = self._names[code] = find_operation(code)
        if name is None or frame.f_trace is not None:  # a coroutine that goes on was counted already
            return frame.f_trace
        frame.f_trace_lines = False
        fault = self._fault
        with self._lock:
            count = self._count(name, fault)
        self.is_async.setdefault(name, is_async(code))
        if fault is None or name != fault.operation or count != fault.nth or self._struck:
            return self._pass_on
        return self._strike_before(fault, frame)

    def _count(self, name: str, fault: Fault | None) -> int:
        """How often it has happened, as the fault counts it; 0 while that does not count yet. The lock is held."""
        if name == BEGIN and not self.at_start:
            self.at_start = dict(self.seen)
        if name == CLAIM and not self.at_claim:
            self.at_claim = dict(self.seen)
        self.seen[name] = self.seen.get(name, 0) + 1
        if fault is not None and name == fault.after:
            self._is_counting = True
        if self._is_counting:
            self._since[name] = self._since.get(name, 0) + 1
        return self._since.get(name, 0)

    def _pass_on(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        """Marks a frame that was counted."""
        if event == "return" and self._fault is None and _has_returned(frame):
            self.returned.add(find_operation(frame.f_code) or "")
        return self._pass_on

    def _strike_before(self, fault: Fault, frame: FrameType) -> Callable[..., Any]:
        if fault.kind in (Kind.PARTIAL, Kind.KILL_AFTER):
            return self._on_return
        if fault.kind is Kind.HANG and is_async(frame.f_code):
            peer = find_peer(fault.operation, frame)
            self._note("peer")
            os.kill(peer, signal.SIGSTOP)
            return self._pass_on
        self._note()
        if fault.kind is Kind.KILL_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind is Kind.DELAY:
            time.sleep(DELAY_S)
        elif fault.kind is Kind.ERROR:
            raise fault_of(fault.operation)
        else:
            time.sleep(HANG_S)
        return self._pass_on

    def _on_return(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        fault = self._fault
        if event != "return" or self._struck or fault is None or not (_has_returned(frame) or _has_given(fault, frame)):
            return self._on_return
        self._note()
        if fault.kind is Kind.KILL_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        raise fault_of(fault.operation)

    def _note(self, where: str = "") -> None:
        self._struck = True
        main = threading.current_thread() is threading.main_thread()
        self._fired.write_text(where or ("main" if main else "thread"))


def is_async(code: CodeType) -> bool:
    """Whether it runs in Trio's own thread and waits for somebody else there."""
    return bool(code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))


def _has_given(fault: Fault, frame: FrameType) -> bool:
    """True where a context manager hands over what it took: killed there, its act is done and nothing is undone."""
    is_generator = bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
    return fault.kind is Kind.KILL_AFTER and is_generator and dis.opname[_opcode(frame)] == "YIELD_VALUE"


def _has_returned(frame: FrameType) -> bool:
    """True at the frame's own end, False where it yields, waits or raises."""
    return dis.opname[_opcode(frame)].startswith("RETURN")


def _opcode(frame: FrameType) -> int:
    return frame.f_code.co_code[frame.f_lasti]
