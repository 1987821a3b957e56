"""How a machine is brought up: the same steps in the same order for every backend.

spawned -> (loaded, paused -> rehearsed) -> pinned -> running. A pool stops on the way and goes on later. Undoes
nothing: whoever launched it tears it down. Called by serve.py, the pool and the template builder.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext

import trio

from nimbus.host_agent.guest import look_at_guest
from nimbus.host_agent.jailer import SecurityAlarm
from nimbus.host_agent.lane import Hung
from nimbus.host_agent.pinning import PinFailed, pin_machine
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm import Vmm
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, Machine, Memory, Stage, open_machine
from nimbus.model.errors import GuestFault, HostFault
from nimbus.wire.keeper import VmmExit

Span = Callable[[str], AbstractContextManager[object]]

LAST_WORDS_BYTES = 1024
REHEARSAL_LIMIT_S = 60.0  # a tenth of a second under TCG alone; a pool is filled beside running jobs
DEATH_S = 0.5  # between a VMM's last answer and its keeper's word that it is dead


class RestoreFailed(HostFault):
    """A template could not be loaded, or what was loaded did not run. The machine is lost, a cold boot is not."""


class EndedByKeeper(HostFault):
    """Its time was over, or nobody held it any more: whatever it was about to do says nothing against it."""


_KEEPERS_REASONS = frozenset({"deadline", "orphan"})
_BLAMES_NO_TEMPLATE = (RestoreFailed, SecurityAlarm, PinFailed, EndedByKeeper, Hung)


async def launch_machine(
    vmm: Vmm,
    plan: VmPlan,
    boot: Boot,
    terms: KeeperTerms,
    *,
    until: Stage = Stage.RUNNING,
    span: Span = nullcontext,
    task_status: trio.TaskStatus[Machine],
) -> VmmExit:
    """Start the VM, bring it up, hand it over, and return how it ended. `span` times each step by its name."""
    async with AsyncExitStack() as stack:
        with span("keeper"):
            machine = await stack.enter_async_context(open_machine(vmm, plan, boot, terms))
        await bring_up(machine, boot, until=until, span=span)
        task_status.started(machine)
        return await machine.wait_gone()


async def bring_up(
    machine: Machine,
    boot: Boot,
    *,
    since: Stage | None = None,
    until: Stage = Stage.RUNNING,
    span: Span = nullcontext,
) -> None:
    """From one stage to a later one. Raises HostFault with the VMM's last words where it ends on the way, and
    RestoreFailed where that was after a template's memory was asked for.
    """
    touched = (since or Stage.SPAWNED) >= Stage.PAUSED
    try:
        async with _while_it_lives(machine):
            if since is None:
                with span("spawn"):
                    await machine.vmm.spawn(machine, boot)
            if (since or Stage.SPAWNED) < Stage.PAUSED <= until and boot.memory is Memory.TEMPLATE:
                touched = True
                with span("load"):
                    await machine.vmm.load(machine, boot)
            if until is Stage.REHEARSED and machine.vmm.can_rehearse:  # else it waits paused
                with span("rehearse"):
                    await _rehearse(machine, boot)
            pinned = await _pin(machine, span)  # a pool machine too: its CPUs come with its job
            if until is Stage.RUNNING:
                with span("run"):
                    await machine.vmm.run(machine, boot)
                if not pinned and not await _pin(machine, span):
                    raise PinFailed(f"the VMM of VM {machine.plan.vm} runs, and has no vCPU threads")
    except HostFault as error:
        if touched and not isinstance(error, _BLAMES_NO_TEMPLATE):
            raise RestoreFailed(str(error)) from error
        raise


async def _rehearse(machine: Machine, boot: Boot) -> None:
    """Let the guest be prepared and answer once, as a job's host will ask it to, and pause it again.

    What that takes the first time (copies of the template's pages, under TCG the translation of its code too) is then
    behind it. The guest forgets the answer, and the job's host prepares it anew.
    """
    await machine.vmm.run(machine, boot)
    with trio.move_on_after(REHEARSAL_LIMIT_S):
        try:
            await look_at_guest(machine.connect_guest, prepare=True)
        except GuestFault as error:
            raise HostFault(str(error)) from error
        await machine.vmm.pause(machine)
        return
    raise HostFault(f"the guest of a template's clone did not answer in {REHEARSAL_LIMIT_S:g} s")


async def _pin(machine: Machine, span: Span) -> bool:
    """Its vCPUs to their own CPUs. False where there are none yet: Firecracker makes them as a cold machine starts."""
    if machine.plan.placement is None:
        return True
    with span("pin"):
        return await pin_machine(machine)


@asynccontextmanager
async def _while_it_lives(machine: Machine) -> AsyncIterator[None]:
    """The block, given up when the VMM ends: no answer of it will ever come."""
    ended: list[VmmExit] = []
    failed: HostFault | None = None

    async def watch(scope: trio.CancelScope) -> None:
        ended.append(await machine.wait_gone())
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        try:
            yield
        except HostFault as error:  # a VMM that dies closes its sockets first: who asks it hears of that before us
            failed = error
            nursery.cancel_scope.deadline = trio.current_time() + DEATH_S
            await trio.sleep_forever()
        nursery.cancel_scope.cancel()
    if isinstance(failed, SecurityAlarm):  # its death was our answer to it
        raise failed
    if ended:
        kind = EndedByKeeper if ended[0].reason in _KEEPERS_REASONS else HostFault
        raise kind(await _describe_death(machine, ended[0], failed)) from failed
    if failed is not None:
        raise failed


async def _describe_death(machine: Machine, told: VmmExit, failed: HostFault | None) -> str:
    tail = (await machine.console_tail(LAST_WORDS_BYTES)).decode(errors="replace").strip()
    words = "".join(char if char.isprintable() else " " for char in tail)
    why = f" ({failed})" if failed else ""
    return f"the VMM {told.kind} {told.code if told.code is not None else ''} before it was up{why}: {words}"
