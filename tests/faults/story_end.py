"""The end of each story of the lease machine: without more faults everything ends, and nothing is left.

Every request comes to its end, every record goes, agents exit when they are told to, two reapers that race find nothing
(twice), all output has arrived, and the neighbour never noticed. Called by lease_machine.py.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.output.stragglers import StragglerLimits, ship_round
from nimbus.host_agent.plan import HostLayout
from tests.faults.forks import ask, wait_for
from tests.faults.laws import count_ends, find_torn_logs
from tests.faults.leasehosts import START_S, Host
from tests.faults.witness import find_gaps, read_beats
from tests.faults.world import NAMES, Crime, World

GRACE_S = 2.0
GAP_S = 15.0  # a neighbour's silence that no load of this machine explains


def finish_story(world: World) -> None:
    """No more faults: every request ends, agents exit, nothing is left. Raises Crime."""
    for name in NAMES:
        world.thaw(name)
        world.heal(name)
    for index in range(world.requests):
        world.end_job(index, 0)
    for name in NAMES:
        world.see_drained(name)
        world.start(name)
    _wait(world, "its requests do not end", lambda: bool(world.look().told["over"]))
    _wait(world, "records are left", lambda: not _records(world))
    for name in NAMES:
        _wait(world, "an agent does not get ready", world.hosts[name].is_ready)
        world.stop(name)
    for host in world.hosts.values():
        _judge_host(world, host)
    seen = world.look()
    if torn := find_torn_logs(seen.told):
        raise Crime("\n".join(torn))
    world.stories += 1
    world.account.update(count_ends(seen))


def _wait(world: World, what: str, seen: Callable[[], bool]) -> None:
    if not wait_for(seen, START_S, 0.2):
        said = "\n".join(h.agent.told()[-2500:] for h in world.hosts.values() if h.agent is not None)
        raise Crime(f"{what} in {START_S:g} s: {world.tell()['requests']}, {_records(world)}\n{said}")


def _records(world: World) -> list[str]:
    return [name for host in world.hosts.values() for name in host.records()]


def _judge_host(world: World, host: Host) -> None:
    for _ in range(2):
        _look_for_leaks(host)
        world.purge(host.name)
    left = ask(world.folder / "ship.txt", START_S, _ship, host.layout)
    if left != [0, 0]:
        raise Crime(f"host {host.name}: {left[0]} spools wait and {left[1]} were given up")
    gaps = find_gaps(read_beats(host.quiet_beats), GAP_S)
    if gaps:
        raise Crime(f"the neighbour was hurt: {gaps}")


def _look_for_leaks(host: Host) -> None:
    """The kernel lets go of a dead process a moment after the kill is seen."""
    if not wait_for(lambda: host.leftovers() == host.mine, GRACE_S):
        now = host.leftovers()
        raise Crime(f"host {host.name} leaks {sorted(now - host.mine)}, and lost {sorted(host.mine - now)}")


def _ship(layout: HostLayout) -> tuple[int, int]:
    """One round over what no agent has shipped."""
    done = trio.run(ship_round, layout.spools, Ledger(layout.ledger).names, StragglerLimits())
    return done.waiting, done.given_up
