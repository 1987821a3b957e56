"""Agents that wait for work: one task of each process looks into the queue for all, and wakes one for a request.

An idle agent costs no query. A look comes with a ring of the bell, and at the latest after LeaseTerms.look_s; what it
finds is offered to one agent of all processes for LeaseTerms.patience_s (a row of `offers`), then to the next.
Who is woken makes an ordinary grant: whose turn it is decides leases.py alone, and an offer is no promise. Never grants
by itself. Called by agents_api.py (`wait_grant`) and app.py (`run_waitroom`).

Why no request is missed. A ring follows each commit that queues one, and where it is lost the next look by time does
not need it. The look sees the request and chooses among all who have a seat when the answer is here. An agent that
takes one later was told by that look that something is queued, and looks by itself. It is told otherwise only by a
look that found the queue empty, and only until the next ring: that one came after every commit that the look missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog
import trio

from nimbus.control_plane.queue.leases import Look, look_for_work
from nimbus.control_plane.queue.seats import Noted, Request, Seat, plan_offer, render_offers
from nimbus.control_plane.services import MACHINES, Services
from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Row, load_queries
from nimbus.wire.leaseapi import Grant, LeaseRequest, MachineKind

log = structlog.get_logger()

_SQL = load_queries("nimbus.control_plane", "queries", "waitroom.sql")
LOOK_AGAIN_S = 0.1  # where another process was counting what capped orgs hold: it has committed by then
NOTE_S = 30.0  # between two notes of what an agent offers that has not changed; after 60 s it would count as silent
MOMENT_S = 0.01  # the least time between two looks: rings that come together are one
LATER_S = 0.05  # than the end of an offer: another process may have made it just after we looked
REST = 2  # and so many times as long as the last look took: with a long queue, looks leave the database its time


async def wait_grant(services: Services, agent_id: str, request: LeaseRequest) -> Grant | None:
    """A lease for this agent, waited for up to `request.wait_s`; None where nothing came.

    A caller that goes away while a lease is being granted (it drains, it dies, the reply is lost) never renews it, and
    such a lease is short.
    """
    await _note_first(services, agent_id, request)
    seat = services.room.enter(agent_id, plan_offer(request))
    try:
        look = Look(None, whole=True)
        # who does not wait is answered by the queue itself, whatever is known of it
        if request.wait_s <= 0 or not services.room.is_quiet(services.bell.rings(MACHINES), trio.current_time()):
            look = await look_for_work(services, agent_id, request)
            if look.grant is not None:
                _answer(services, seat, look)
        with trio.move_on_after(request.wait_s):
            while look.grant is None and not services.stopping.is_set():
                await _wait_turn(seat, look)
                if not services.stopping.is_set():
                    look = await look_for_work(services, agent_id, request)
                    _answer(services, seat, look)
        return look.grant
    finally:
        if services.room.leave(seat):
            services.metrics.agents_woken.labels("left").inc()


async def _wait_turn(seat: Seat, look: Look) -> None:
    if look.whole:
        await seat.wait_called()
    else:
        await trio.sleep(LOOK_AGAIN_S)


def _answer(services: Services, seat: Seat, look: Look) -> None:
    if seat.called_for is None or (look.grant is None and not look.whole):
        return
    granted = None if look.grant is None else look.grant.key.machine_id
    came_to = "nothing" if granted is None else "its_request" if granted == seat.called_for else "another"
    services.metrics.agents_woken.labels(came_to).inc()
    services.room.answer(seat, granted, services.bell.rings(MACHINES))


# --- looking for all of them -------------------------------------------------------------------------------------


async def run_waitroom(services: Services) -> None:
    """Look into the queue for the agents that wait in this process, until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_dismiss_at_stop, services)
        nursery.start_soon(_keep_noted, services)
        with services.bell.listen(MACHINES, services.room.ear):
            await _look_on(services)


async def _dismiss_at_stop(services: Services) -> None:
    """Let waiting agents go as soon as the service is told to stop."""
    await services.stopping.wait()
    services.room.dismiss()


async def _look_on(services: Services) -> None:
    room, terms = services.room, services.lease_terms
    next_s, away = trio.current_time(), False
    while True:
        await room.wait_taken()  # else nobody could be woken; what rings meanwhile is told to who comes next
        with trio.move_on_at(next_s):
            await room.ear.wait()
        room.ear.forget()
        began_s = trio.current_time()
        try:
            queued = await _attend(services)
            away = False
        except Unavailable as error:
            if not away:
                log.warning("waitroom.postponed", reason=str(error))
            queued, away = False, True
        ended_s = trio.current_time()
        # by then an offer that was made meanwhile, here or elsewhere, has run out
        next_s = ended_s + (min(terms.patience_s + LATER_S, terms.look_s) if queued else terms.look_s)
        # a look that failed took long because the database was away: once it is back, agents wait for the next one
        await trio.sleep(MOMENT_S if away else max(MOMENT_S, REST * (ended_s - began_s)))


async def _attend(services: Services) -> bool:
    """Wake somebody for each request that nobody is woken for, as far as there is anybody; whether any is queued."""
    room = services.room
    while True:
        rings = services.bell.rings(MACHINES)
        returned = sorted(room.take_returned())
        services.metrics.queue_looks.inc()
        offers = render_offers(room.find_largest())
        rows = await services.database.fetch(_SQL["find_unoffered"], offers, room.places, returned)
        queued = bool(rows[0]["queued"])
        if not queued:
            room.keep_quiet(rings, trio.current_time() + 2 * services.lease_terms.look_s)
        barred_news = room.bar(frozenset(rows[0]["barred"]))
        calls = room.match(
            [_read(row) for row in rows if row["machine_id"] is not None], services.lease_terms.patience_s
        )
        woken = await _wake(services, calls, returned, rings)
        if not (woken or barred_news) or not room.places or not room.find_largest():
            return queued


async def _wake(services: Services, calls: Mapping[Request, Seat], returned: list[int], rings: int) -> bool:
    """Whether anybody was: another process may have been faster."""
    if not calls:
        return False
    machines, fences = [each.machine_id for each in calls], [each.fence for each in calls]
    patience_s = services.lease_terms.patience_s
    rows = await services.database.fetch(_SQL["claim_offers"], machines, fences, returned, patience_s)
    claimed = {row["machine_id"] for row in rows}
    for request, seat in calls.items():
        if request.machine_id in claimed:
            services.room.call(seat, request.machine_id, rings)
    return bool(claimed)


def _read(row: Row) -> Request:
    anywhere = row["kind"] == MachineKind.COMMAND
    return Request(
        row["machine_id"],
        row["fence"],
        row["arch"],
        None if anywhere else frozenset(row["host_labels"]),
        row["cpus"],
        row["mem_mib"],
        row["disk_mib"],
        row["overdue_s"],
    )


# --- what they offer ---------------------------------------------------------------------------------------------


async def _note_first(services: Services, agent_id: str, request: LeaseRequest) -> None:
    """Write down what the agent offers, where this process has not or it has changed."""
    noted = Noted(agent_id, tuple(sorted({label.lower() for label in request.labels})), str(request.arch))
    if services.room.noted.get(agent_id) != noted:
        await _note(services, [noted])
        services.room.noted[agent_id] = noted


async def _keep_noted(services: Services) -> None:
    """Write down twice a minute who is heard of, in one statement for all."""
    room = services.room
    while True:
        await trio.sleep(NOTE_S)
        await room.wait_taken()
        here = {seat.agent_id for seat in room}
        room.noted = {agent_id: noted for agent_id, noted in room.noted.items() if agent_id in here}
        try:
            await _note(services, list(room.noted.values()))
        except Unavailable as error:
            log.warning("offers.not_noted", reason=str(error))


async def _note(services: Services, offers: Iterable[Noted]) -> None:
    told = [{"agent_id": each.agent_id, "labels": list(each.labels), "arch": each.arch} for each in offers]
    await services.database.fetch(_SQL["note_offers"], told)
