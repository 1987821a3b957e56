"""What ties a machine to its agent, and how it comes off: undone and told, or left to the next agent.

`see_through` is the one way from a machine's service to its end. Every ending (done, fenced, VMM dies, boot fails,
cancelled) leaves through teardown, and the end is in the record before anything is undone; only a machine that its
agent detaches from lives on. Called by lifecycle.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import structlog
import trio

from nimbus.host_agent.causes import name_fault
from nimbus.host_agent.departure import Departure
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.life import Life, Outcome, describe_cause, judge
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.postmortem import keep_console
from nimbus.host_agent.teardown import teardown
from nimbus.model.errors import HostFault, NimbusError
from nimbus.model.vm import Claim, Ending

log = structlog.get_logger()

SinkT = TypeVar("SinkT", bound=OutputSink)
LAST_WORD_S = 2.0  # of an agent that stops: a control plane that is away hears the end from the next agent
NOTE_S = 5.0  # to write one small file
_BAD = frozenset({Ending.GUEST_CRASHED, Ending.OUT_OF_MEMORY, Ending.HOST_FAULT})


class Reporter(Protocol):
    """Who must hear of a machine's end."""

    def is_wanted(self) -> bool:
        """False once the lease is lost: nothing may be told under it any more."""
        ...

    def render(self, outcome: Outcome) -> Mapping[str, object]:
        """What to tell."""
        ...

    async def tell(self, report: Mapping[str, object]) -> None:
        """Return when it was heard, or refused for good."""
        ...


@dataclass(frozen=True)
class Ties(Generic[SinkT]):
    """What ties a machine to its agent: where its output goes, who hears of its end, and how the agent leaves."""

    open_sink: Callable[[OpenRecord], AbstractAsyncContextManager[SinkT]]
    reporter: Reporter | None = None
    departure: Departure = field(default_factory=Departure)


async def see_through(
    layout: HostLayout, ties: Ties[SinkT], life: Life, serve: Callable[[SinkT], Awaitable[None]]
) -> Outcome:
    """Serve, undo, report; or stop where the machine is left to the next agent."""
    record, told = life.record, False
    try:
        try:
            async with ties.open_sink(record) as sink:
                await _serve_and_come_off(layout, ties, life, partial(serve, sink))
        except* (NimbusError, OSError) as fault:  # the sink's own
            life.error = life.error or name_fault(fault)
        await _undo_once(layout, ties, life)  # where the sink did not even open
        outcome = _render_outcome(life, ties.departure)
        log.info("vm.ended", ending=str(outcome.ending), cause=outcome.cause, clean=outcome.clean)
        await _report(ties.reporter, record, outcome)
        told = True
    finally:
        if not (told or record.detached):  # cancelled, maybe before the sink was open
            await _come_off(layout, ties, life)  # noqa: ASYNC102 - its shields and limits are inside
            if not record.detached:
                with trio.move_on_after(LAST_WORD_S, shield=True):
                    await _report(ties.reporter, record, _render_outcome(life, ties.departure))
    return outcome


async def tell_untold(layout: HostLayout, ties: Ties[SinkT], record: OpenRecord) -> None:
    """See off a machine that had ended when its agent died: release what is left, then tell the recorded end."""
    report, reporter = record.value.report, ties.reporter
    assert report is not None  # noqa: S101 - why it was called
    assert reporter is not None  # noqa: S101 - only leased machines have a report
    await teardown(layout, record)  # first, and whatever else becomes of this: its VM may still live
    try:
        try:
            async with ties.open_sink(record):
                pass  # opened to be ended
        except* (NimbusError, OSError) as fault:  # output that cannot be shipped must not keep an end from being told
            log.warning("vm.output_lost", vm=str(record.value.vm), why=str(name_fault(fault)))
        if _is_ended(record) or report.get("exit_code") is not None or report.get("signal") is not None:
            await reporter.tell(report)
            await in_thread(record.forget_report)
    finally:
        if not reporter.is_wanted():
            with trio.move_on_after(NOTE_S, shield=True):
                await in_thread(record.forget_report)


async def _serve_and_come_off(
    layout: HostLayout, ties: Ties[SinkT], life: Life, serve: Callable[[], Awaitable[None]]
) -> None:
    """The VM is down before its output's last words travel: they may take seconds, and the guest must not go on."""
    try:
        await serve()
    except* (NimbusError, OSError) as fault:
        life.error = name_fault(fault)
    finally:
        await _come_off(layout, ties, life)  # noqa: ASYNC102 - its shields and limits are inside


async def _come_off(layout: HostLayout, ties: Ties[SinkT], life: Life) -> None:
    """Leave the machine to the next agent, or undo it. One whose lease is lost is never left: another may run it."""
    is_ours = ties.reporter is None or ties.reporter.is_wanted()
    if ties.departure.detaching and is_ours and not life.undone and life.may_be_left():
        life.record.detached = True
        log.info("vm.left_to_the_next_agent", vm=str(life.record.value.vm))
    else:
        await _undo_once(layout, ties, life)


async def _undo_once(layout: HostLayout, ties: Ties[SinkT], life: Life) -> None:
    """The end goes into the record before anything is undone: whoever finds the record can tell it."""
    if life.undone:
        return
    life.undone = True
    if ties.reporter is not None and ties.reporter.is_wanted():
        report = ties.reporter.render(_render_outcome(life, ties.departure))
        with trio.move_on_after(NOTE_S, shield=True):
            await _note_report(life.record, report)
    with trio.move_on_after(NOTE_S, shield=True):
        await _keep_last_words(layout, life)
    with life.phases.span("teardown"):
        life.clean = await teardown(layout, life.record)


async def _keep_last_words(layout: HostLayout, life: Life) -> None:
    """Of a VM that ended badly: its folder, and the console in it, are removed next."""
    ending = judge(life.exit, life.error)
    if ending not in _BAD or not life.console:
        return
    facts = {"ending": str(ending), "cause": describe_cause(life), "created_at": life.record.value.created_at}
    try:
        await in_thread(partial(keep_console, layout.postmortems, life.record.value.vm, life.console, facts))
    except HostFault as error:
        log.warning("vm.last_words_lost", vm=str(life.record.value.vm), error=str(error))


async def _note_report(record: OpenRecord, report: Mapping[str, object]) -> None:
    try:
        await in_thread(partial(record.change, report=report))
    except HostFault as error:  # a full disk: the end is told all the same, if this agent lives as long
        log.warning("ledger.write_failed", vm=str(record.value.vm), error=str(error))


async def _report(reporter: Reporter | None, record: OpenRecord, outcome: Outcome) -> None:
    """Tell the end; the record goes with the answer, or where nobody wants to hear it."""
    if not (_is_ended(record) or outcome.exit):
        return
    if reporter is not None and reporter.is_wanted():
        await reporter.tell(reporter.render(outcome))
    try:
        await in_thread(record.forget_report)
    except HostFault as error:  # a full disk: it is told again, which changes nothing
        log.warning("ledger.write_failed", vm=str(record.value.vm), error=str(error))


def _is_ended(record: OpenRecord) -> bool:
    """False while its VMM may live: an end told now could give the work to another host beside it. Only a lease that
    runs out may do that; an exit that the guest told is no such end.
    """
    if Claim.VMM not in record.value.claims:
        return True
    log.error("vm.not_ended", vm=str(record.value.vm), why="its VMM could not be killed: its end is not told")
    return False


def _render_outcome(life: Life, departure: Departure) -> Outcome:
    cause, ending = describe_cause(life), judge(life.exit, life.error)
    if life.exit is None and life.error is None:  # cancelled
        ending = Ending.CANCELLED if departure.leaving else Ending.HOST_FAULT
        cause = "its agent was stopped" if departure.leaving else "its agent gave it up"
    record = life.record.value
    return Outcome(
        record.vm, ending, life.exit, cause, life.phases.render(), life.clean, life.boots, record.attestation
    )
