"""Pins a VM's vCPUs one to one to the CPUs that it was given, and believes only what the kernel says of it afterwards.

The VMM's other threads (its loop, its workers) share the VM's own CPUs: what a guest makes its VMM do costs that guest
alone. Only threads that the kernel lists in the VM's cgroup are touched, whatever a VMM names as its own. Called by
vmm/launch.py, and by sight/inspection.py for the looks.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nimbus.host import cgroup, native
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.plan import VmPlan
from nimbus.model.errors import HostFault, Unavailable
from nimbus.model.placement import Placement, render_cpus

if TYPE_CHECKING:
    from nimbus.host_agent.vmm.machine import Machine

ROUNDS_MAX = 8  # a thread inherits the CPUs of the one that makes it, so two looks are enough for an honest VMM


class PinFailed(HostFault):
    """A thread is not where it was put. No template is to blame for it."""


@dataclass(frozen=True)
class ThreadPlace:
    """One thread of a VMM and where the kernel lets it run."""

    tid: int
    name: str  # as the VMM calls it: a hint for people, never a fact
    cpus: frozenset[int]


async def pin_machine(machine: Machine) -> bool:
    """Pin what there is of it by now. False while its VMM has no vCPU threads yet; PinFailed where it cannot be."""
    if machine.plan.placement is None:
        return True
    try:
        threads = await machine.vmm.vcpu_threads(machine)
    except ProcessLookupError as error:
        raise PinFailed(f"the VMM of VM {machine.plan.vm} ended while it was pinned") from error
    except Unavailable as error:  # who asks its keeper which process it is
        raise PinFailed(str(error)) from error
    if not threads:
        return False
    await in_thread(partial(pin_vcpus, threads, machine.plan))
    return True


def pin_vcpus(threads: tuple[int, ...], plan: VmPlan) -> None:
    """Each vCPU (host thread ids, vCPU 0 first) to its own CPU, all other threads of the VM to its CPUs; read back."""
    placement = plan.placement
    if placement is None or len(threads) != len(placement.vcpus):
        raise PinFailed(f"VM {plan.vm} has {len(threads)} vCPU threads, and CPUs for {plan.shape.cpus}")
    own = cgroup.list_threads(plan.object)
    if not own:
        raise PinFailed(f"the VMM of VM {plan.vm} ended before it was pinned")
    if strangers := set(threads) - own:
        raise PinFailed(f"its VMM names threads that are not in the cgroup of VM {plan.vm}: {sorted(strangers)}")
    wanted = {thread: frozenset({cpu}) for thread, cpu in zip(threads, placement.vcpus, strict=True)}
    if len(wanted) != len(threads):
        raise PinFailed(f"its VMM names one thread for two vCPUs of VM {plan.vm}")
    others = _gather_others(plan, frozenset(threads), placement)
    for thread, cpus in wanted.items():
        if not _put(thread, cpus):
            raise PinFailed(f"the VMM of VM {plan.vm} ended while it was pinned")
    _check({**wanted, **dict.fromkeys(others, frozenset(placement.cpus))}, frozenset(threads), plan)


def read_threads(name: str) -> tuple[ThreadPlace, ...]:
    """Every thread of the VMM with this object name; none where it has gone."""
    found = []
    for tid in sorted(cgroup.list_threads(name)):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            comm = Path("/proc", str(tid), "comm").read_text(errors="replace").rstrip("\n")
            found.append(ThreadPlace(tid, comm, native.get_affinity(tid)))
    return tuple(found)


def _gather_others(plan: VmPlan, vcpus: frozenset[int], placement: Placement) -> set[int]:
    """Put every other thread onto the VM's CPUs, until no new one shows up."""
    done: set[int] = set()
    for _ in range(ROUNDS_MAX):
        new = cgroup.list_threads(plan.object) - vcpus - done
        if not new:
            return done
        for thread in new:
            _put(thread, frozenset(placement.cpus))
        done |= new
    raise PinFailed(f"the VMM of VM {plan.vm} makes threads faster than they can be pinned")


def _put(thread: int, cpus: frozenset[int]) -> bool:
    """False where the thread has ended."""
    try:
        native.set_affinity(thread, cpus)
    except ProcessLookupError:
        return False
    except OSError as error:
        lost = error.errno == errno.EINVAL
        why = "they are offline, or outside its cpuset" if lost else str(error.strerror)
        raise PinFailed(f"thread {thread} could not be pinned to CPUs {render_cpus(cpus)}: {why}") from error
    return True


def _check(wanted: dict[int, frozenset[int]], vcpus: frozenset[int], plan: VmPlan) -> None:
    for thread, cpus in wanted.items():
        try:
            found = native.get_affinity(thread)
        except ProcessLookupError as error:
            if thread in vcpus:
                raise PinFailed(f"the VMM of VM {plan.vm} ended while it was pinned") from error
            continue
        if found != cpus:
            asked = render_cpus(cpus)
            raise PinFailed(f"thread {thread} of VM {plan.vm} runs on CPUs {render_cpus(found)} in place of {asked}")
