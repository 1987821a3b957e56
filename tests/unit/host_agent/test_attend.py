"""What a guest says moves its limits; what it writes on its console cannot do harm."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from nimbus.cli.run import LocalLease
from nimbus.host_agent.attend import OVERTIME_S, SILENCE_LIMIT_S, _hear
from nimbus.host_agent.guest import GuestConnected, GuestEvent, GuestHeartbeat, GuestHello, GuestJobStarted
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.life import Life, Overtime, describe_end, judge
from nimbus.host_agent.phases import Phases
from nimbus.model.ids import new_vm_id
from nimbus.model.record import Record
from nimbus.model.vm import Command, Ending
from nimbus.wire.guestlink import GuestState

HELLO = GuestHello(1, GuestState.IDLE, 1, b"n" * 16, 1000, 10, (0, 0), (0, 0), "6.1")
BEAT = GuestHeartbeat(1, GuestState.RUNNING, 0.0, 0, 1, 1, 0, (0, 0), (0, 0))


def make_life(command: Command) -> Life:
    record = Record(vm=new_vm_id(), created_at=0, boot_id="b", backend="fake", plan={}, claims=())
    life = Life(Phases(), OpenRecord(Ledger(Path("/nowhere")), record), command)
    life.heard = trio.CancelScope(deadline=trio.current_time() + 10)
    return life


def hear(life: Life, event: GuestEvent) -> None:
    _hear(life, LocalLease(-1), event)


async def test_a_guest_that_keeps_beating_lives_no_longer_than_its_commands_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    life, began = make_life(Command(("true",), timeout_s=100, grace_s=20)), trio.current_time()
    hear(life, HELLO)
    words: list[GuestEvent] = [GuestJobStarted(1, 1), *[BEAT] * 30]
    for event in words:
        await trio.sleep(10)
        hear(life, event)
        hear(life, HELLO)
        assert life.heard.deadline <= began + 100 + 20 + OVERTIME_S
    assert life.heard.deadline == began + 100 + 20 + OVERTIME_S


async def test_a_command_without_a_time_limit_is_ended_by_silence_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    life = make_life(Command(("true",)))
    hear(life, HELLO)
    await trio.sleep(86_000)
    hear(life, BEAT)
    assert life.heard.deadline == trio.current_time() + SILENCE_LIMIT_S


async def test_a_connection_alone_gives_a_hung_boot_no_more_time(autojump_clock: trio.testing.MockClock) -> None:
    life = make_life(Command(("true",)))
    limit = life.heard.deadline
    await trio.sleep(1)
    hear(life, GuestConnected())
    assert life.heard.deadline == limit


async def test_a_guest_that_greets_again_and_again_boots_once(autojump_clock: trio.testing.MockClock) -> None:
    life = make_life(Command(("true",)))
    await trio.sleep(1)
    for _ in range(5):
        hear(life, HELLO)
    assert life.phases.render()["kernel"] == HELLO.kernel_ms


async def test_what_a_guest_writes_on_its_console_steers_no_terminal_and_breaks_no_report() -> None:
    life = make_life(Command(("true",)))
    await trio.lowlevel.checkpoint()
    life.console = b"\x1b]0;owned\x07 nul\0 \xff\r\nlast\x9b2J words\n"
    told = describe_end(life, "it ended")
    assert told.isprintable()
    assert "words" in told


@pytest.mark.parametrize("error", [Overtime("the guest did not end its command in time")])
def test_a_guest_that_outlives_its_commands_time_ends_as_timed_out(error: Overtime) -> None:
    assert judge(None, error) is Ending.TIMED_OUT
