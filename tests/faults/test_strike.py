"""The tracer itself: each kind strikes where it says, once, in Trio's thread and in a worker's, and leaves a proof."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nimbus.host.disk import write_atomically
from nimbus.host.slots import list_slots
from nimbus.host_agent.keeper import read_exit
from nimbus.host_agent.ledger import Ledger
from nimbus.model.errors import HostFault
from nimbus.model.ids import VmId
from nimbus.wire.keeper import VANISHED
from tests.faults.forks import fork
from tests.faults.strike import Fault, Kind, Tracer


@pytest.fixture(autouse=True)
def _untraced() -> Iterator[None]:
    """Coverage tools and debuggers trace too: whoever did so before does so again."""
    before = sys.gettrace(), threading.gettrace()
    yield
    sys.settrace(before[0])
    if before[1] is not None:
        threading.settrace(before[1])
    else:
        threading.settrace(None)


def trace(tmp_path: Path, operation: str, kind: Kind, nth: int = 1) -> Path:
    fired = tmp_path / "fired"
    Tracer(Fault(operation, kind, nth), fired).install()
    return fired


def test_an_error_strikes_before_anything_is_done(tmp_path: Path) -> None:
    fired = trace(tmp_path, "host.disk.write_atomically", Kind.ERROR)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", b"x", fsync=False)
    assert not (tmp_path / "a").exists()
    assert fired.read_text() == "main"


def test_a_partial_one_is_done_and_its_answer_is_lost(tmp_path: Path) -> None:
    fired = trace(tmp_path, "host.disk.write_atomically", Kind.PARTIAL)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", b"x", fsync=False)
    assert (tmp_path / "a").read_bytes() == b"x"
    assert fired.exists()


def test_it_strikes_at_the_time_that_was_asked_for_and_never_again(tmp_path: Path) -> None:
    trace(tmp_path, "host.slots.list_slots", Kind.ERROR, nth=2)
    assert list_slots(tmp_path) == ()
    with pytest.raises(HostFault, match="struck"):
        list_slots(tmp_path)
    assert list_slots(tmp_path) == ()


async def test_a_coroutine_is_struck_at_its_own_end_and_not_each_time_it_waits(tmp_path: Path) -> None:
    fired = trace(tmp_path, "host_agent.keeper.read_exit", Kind.PARTIAL, nth=2)
    assert await read_exit(tmp_path) is VANISHED
    with pytest.raises(HostFault, match="struck"):
        await read_exit(tmp_path)
    assert fired.read_text() == "main"


async def test_a_worker_thread_is_struck_like_the_first(tmp_path: Path) -> None:
    fired = trace(tmp_path, "host.slots.list_slots", Kind.ERROR)
    done = threading.Event()
    caught: list[Exception] = []

    def look() -> None:
        try:
            list_slots(tmp_path)
        except HostFault as error:
            caught.append(error)
        done.set()

    threading.Thread(target=look).start()
    assert await trio.to_thread.run_sync(done.wait, 30)
    assert len(caught) == 1
    assert fired.read_text() == "thread"


@pytest.mark.parametrize(("kind", "written"), [(Kind.KILL_BEFORE, False), (Kind.KILL_AFTER, True)])
def test_a_kill_comes_before_or_after_the_act(tmp_path: Path, kind: Kind, written: bool) -> None:
    def act() -> None:
        trace(tmp_path, "host.disk.write_atomically", kind)
        write_atomically(tmp_path / "a", b"x", fsync=False)

    child = fork(tmp_path / "words", act)
    assert child.wait(30)
    assert child.status == -signal.SIGKILL
    assert (tmp_path / "a").exists() is written
    assert (tmp_path / "fired").exists()


def test_a_kill_after_a_context_manager_comes_before_its_block(tmp_path: Path) -> None:
    def act() -> None:
        trace(tmp_path, "host_agent.ledger.Ledger.take", Kind.KILL_AFTER)
        with Ledger(tmp_path).take(VmId("0a1b2c3d")):
            (tmp_path / "inside").touch()

    child = fork(tmp_path / "words", act)
    assert child.wait(30)
    assert child.status == -signal.SIGKILL
    assert not (tmp_path / "inside").exists()


def test_without_a_fault_operations_are_counted(tmp_path: Path) -> None:
    tracer = Tracer(None, tmp_path / "fired")
    tracer.install()
    write_atomically(tmp_path / "a", b"x", fsync=True)
    list_slots(tmp_path)
    assert tracer.seen == {"host.disk.write_atomically": 1, "host.disk._sync_folder": 1, "host.slots.list_slots": 1}
    assert not (tmp_path / "fired").exists()
