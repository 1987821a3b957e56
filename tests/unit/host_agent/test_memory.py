"""Who ran out of memory, by what the kernel left behind: pure judgements, and what people are told."""

from __future__ import annotations

import pytest

from nimbus.host_agent.memory import explain_kills, judge_vmm_end, panicked_for_memory
from nimbus.host_agent.usage import MemoryEvents
from nimbus.model.vm import Ending, GuestExit
from nimbus.wire.keeper import VANISHED, VmmExit

KILLED = VmmExit("signaled", 9, "exit")


def test_a_vmm_killed_at_its_own_limit_ran_out_of_memory() -> None:
    assert judge_vmm_end(KILLED, MemoryEvents(kills=1, own_limit=1), 256) == (
        Ending.OUT_OF_MEMORY,
        "the VM ran over its memory (256 MiB and its VMM's own) and was killed",
    )


def test_a_vmm_that_the_host_chose_when_it_ran_out_itself_is_the_hosts_fault() -> None:
    verdict = judge_vmm_end(KILLED, MemoryEvents(kills=1, own_limit=0), 256)
    assert verdict is not None
    assert verdict[0] is Ending.HOST_FAULT


@pytest.mark.parametrize(
    "ended",
    [
        VmmExit("exited", 0, "exit"),
        VmmExit("exited", 1, "exit"),
        VmmExit("signaled", 11, "exit"),
        VmmExit("signaled", 9, "deadline"),
        VmmExit("signaled", 9, "kill", "fenced"),
        VmmExit("signaled", 9, "orphan"),
        VANISHED,
    ],
)
def test_an_end_with_another_reason_is_not_laid_on_a_kill_that_came_before_it(ended: VmmExit) -> None:
    assert judge_vmm_end(ended, MemoryEvents(kills=1, own_limit=1), 256) is None


def test_a_kill_that_the_cgroup_knows_nothing_of_was_not_for_memory() -> None:
    assert judge_vmm_end(KILLED, MemoryEvents(), 256) is None
    assert judge_vmm_end(KILLED, MemoryEvents(kills=0, own_limit=3), 256) is None  # reached, and memory was given back


def test_people_are_told_how_much_memory_there_was_and_who_was_killed() -> None:
    one = explain_kills(GuestExit(None, 9, oom_kills=1), 128)
    assert one == "the guest ran out of memory (128 MiB) and its kernel killed a process of the job"
    assert "killed 2 processes of the job" in explain_kills(GuestExit(137, None, oom_kills=2), 128)


def test_a_failure_with_a_code_of_its_own_is_explained_too() -> None:
    assert explain_kills(GuestExit(2, None, oom_kills=1), 128)


def test_a_success_and_a_failure_without_kills_need_no_explanation() -> None:
    assert explain_kills(GuestExit(0, None, oom_kills=1), 128) == ""
    assert explain_kills(GuestExit(137, None), 128) == ""


def test_a_kernel_that_died_for_memory_is_told_from_one_that_died_otherwise() -> None:
    assert panicked_for_memory("[    9.1] Kernel panic - not syncing: System is deadlocked on memory")
    assert panicked_for_memory("Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is selected")
    assert not panicked_for_memory("Kernel panic - not syncing: sysrq triggered crash")
