"""Death for want of memory: who ran out, what it is called, and what its owner is told.

Pure: values in, words out. `usage.py` and the guest's exit bring the numbers. Called by serve.py and lifecycle.py.
"""

from __future__ import annotations

import signal

from nimbus.host_agent.usage import MemoryEvents
from nimbus.model.vm import Ending, GuestExit
from nimbus.wire.keeper import VmmExit

# The kernel's last words where it found nothing left to kill, or was told to die rather than to choose.
_PANICS = ("System is deadlocked on memory", "Out of memory")


def explain_kills(told: GuestExit, mem_mib: int) -> str:
    """What the guest's kernel did for memory, for people; nothing where it did nothing.

    Said of a failed command whatever its status: a compiler that is killed makes `make` end with 2, not 137.
    """
    if told.oom_kills == 0 or told.status == 0:
        return ""
    processes = "a process" if told.oom_kills == 1 else f"{told.oom_kills} processes"
    return f"the guest ran out of memory ({mem_mib} MiB) and its kernel killed {processes} of the job"


def judge_vmm_end(ended: VmmExit, events: MemoryEvents, mem_mib: int) -> tuple[Ending, str] | None:
    """The verdict on a VMM that the host killed for memory; None where memory had no part in its end.

    Its own limit is the job's business. Where that was not reached, the host ran out, or a slice above all VMs, and the
    kernel chose this one: the job may well run elsewhere.
    """
    killed = ended.kind == "signaled" and ended.code == signal.SIGKILL and ended.reason == "exit"
    if not killed or events.kills == 0:
        return None
    if events.own_limit > 0:
        return Ending.OUT_OF_MEMORY, f"the VM ran over its memory ({mem_mib} MiB and its VMM's own) and was killed"
    return Ending.HOST_FAULT, "the host ran out of memory and its kernel killed this VM"


def panicked_for_memory(panic: str) -> bool:
    """Whether a kernel's last line says that it died for want of memory."""
    return any(words in panic for words in _PANICS)
