"""Traces through the model: what the protocol allows passes, and of what it forbids the offending line is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.model.replay import Refused, replay
from tests.model.run import find_missing

pytestmark = pytest.mark.skipif(bool(find_missing()), reason=f"needs {' and '.join(find_missing())}: make setup")

Line = dict[str, Any]


class Story:
    """What happens to one machine request, told a millisecond at a time."""

    def __init__(self, machine_id: int = 1) -> None:
        self.machine_id = machine_id
        self.state = "queued"
        self.lines: list[Line] = []
        self._add("queue", 0, None, state_from=None)

    def _add(self, event: str, fence: int, agent: str | None, **more: Any) -> Story:
        number = self.machine_id * 1000 + len(self.lines)
        told = {"machine_id": self.machine_id, "event": event, "fence": fence, "agent_id": agent, "at_ms": number}
        self.lines.append(
            told | more if event.startswith("vm_") else {"id": number, "state_to": self.state, **told, **more}
        )
        return self

    def step(self, event: str, fence: int, agent: str | None, to: str) -> Story:
        origin, self.state = self.state, to
        return self._add(event, fence, agent, state_from=origin)

    def lease(self, fence: int, agent: str) -> Story:
        return self.step("lease", fence, agent, "leased")

    def start(self, fence: int, agent: str) -> Story:
        return self._add("vm_started", fence, agent).step("start", fence, agent, "running")

    def dead(self, fence: int, agent: str) -> Story:
        return self._add("vm_dead", fence, agent)

    def expire(self, fence: int, agent: str) -> Story:
        return self.step("expire", fence, agent, "queued")

    def finish(self, fence: int, agent: str) -> Story:
        return self.step("finish_ok", fence, agent, "done")

    def ask_cancel(self, fence: int, agent: str) -> Story:
        return self._add("ask_cancel", fence, agent, state_from=self.state)


def render(*stories: Story) -> list[str]:
    return [json.dumps(line) for story in stories for line in story.lines]


def two_leases() -> Story:
    """One host is lost, another one finishes the work."""
    lost = Story().lease(1, "a").start(1, "a").dead(1, "a").expire(1, "a")
    return lost.lease(2, "b").start(2, "b").dead(2, "b").finish(2, "b")


def test_what_the_protocol_allows_passes() -> None:
    unstarted = Story(2).lease(1, "a").expire(1, "a").lease(2, "c").start(2, "c").ask_cancel(2, "c").dead(2, "c")
    cancelled = unstarted.step("cancel", 2, "c", "cancelled")
    replay(render(two_leases(), cancelled, Story(3).step("cancel", 0, None, "cancelled")), ended=True)


def test_requests_may_be_told_in_any_order() -> None:
    lines = render(Story(2).lease(1, "a").start(1, "a").dead(1, "a").finish(1, "a"), two_leases())
    replay(sorted(lines), ended=True)


def test_one_request_leaves_nothing_behind_for_the_next_in_the_replay() -> None:
    gap = Story(1).lease(1, "a").expire(1, "a").lease(2, "a").start(2, "a").dead(2, "a").finish(2, "a")
    replay(render(gap, Story(2).lease(1, "a").expire(1, "a").lease(2, "a").start(2, "a").dead(2, "a").finish(2, "a")))


def test_no_line_at_all_is_allowed() -> None:
    replay([])


DOCTORED: dict[str, tuple[Story, int]] = {
    "a fence is given twice": (Story().lease(1, "a").expire(1, "a").lease(1, "b"), -1),
    "a fence is left out": (Story().lease(1, "a").expire(1, "a").lease(3, "b"), -1),
    "a finish under a stale fence is accepted": (Story().lease(1, "a").expire(1, "a").lease(2, "b").finish(1, "a"), -1),
    "a finish of an agent that does not hold it is accepted": (Story().lease(1, "a").finish(1, "b"), -1),
    "a running machine is leased without an expiry": (
        Story().lease(1, "a").start(1, "a").dead(1, "a").lease(2, "b"),
        -1,
    ),
    "two terminal events": (
        Story().lease(1, "a").finish(1, "a").step("finish_bad", 1, "a", "failed"),
        -1,
    ),
    "an expiry after the end": (Story().lease(1, "a").finish(1, "a").expire(1, "a"), -1),
    "an event leads where the table does not": (Story().lease(1, "a").step("expire", 1, "a", "lost"), -1),
    "the row was changed between two events": (
        Story().lease(1, "a")._add("finish_ok", 1, "a", state_from="running", state_to="done"),
        -1,
    ),
    "a queued request finishes": (Story().finish(0, "a"), -1),
    "a VM lives on when its lease expires": (Story().lease(1, "a").start(1, "a").expire(1, "a").lease(2, "b"), 4),
    "a VM lives on when its end is told": (Story().lease(1, "a").start(1, "a").finish(1, "a").dead(1, "a"), 4),
    "a VM starts under a stale fence": (
        Story().lease(1, "a").expire(1, "a").lease(2, "b")._add("vm_started", 1, "a"),
        -1,
    ),
    "a VM starts where nobody holds the lease": (Story().lease(1, "a").expire(1, "a")._add("vm_started", 1, "a"), -1),
    "a VM starts twice under one lease": (
        Story().lease(1, "a").start(1, "a").dead(1, "a")._add("vm_started", 1, "a"),
        -1,
    ),
    "a VM dies that never was": (Story().lease(1, "a").dead(1, "a"), -1),
    "a holder is asked to cancel where there is none": (Story().ask_cancel(0, "a"), -1),
    "an event of another protocol": (Story()._add("hand_over", 1, "a"), -1),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_the_first_step_that_the_model_does_not_allow_is_named(name: str) -> None:
    story, index = DOCTORED[name]
    healthy = Story(7).lease(1, "a").start(1, "a").dead(1, "a").finish(1, "a")
    with pytest.raises(Refused) as refused:
        replay(render(healthy, story))
    assert refused.value.line == json.dumps(story.lines[index])


@pytest.mark.parametrize(
    "story", [Story().lease(1, "a"), Story().lease(1, "a").expire(1, "a")], ids=["held", "queued again"]
)
def test_a_request_that_came_to_no_end_is_named_where_all_should_have(story: Story) -> None:
    replay(render(story))
    with pytest.raises(Refused) as refused:
        replay(render(story), ended=True)
    assert refused.value.line == json.dumps(story.lines[-1])


def test_a_death_in_the_millisecond_of_the_expiry_came_before_it() -> None:
    story = Story().lease(1, "a").start(1, "a").expire(1, "a").dead(1, "a")
    story.lines[-1]["at_ms"] = story.lines[-2]["at_ms"]
    replay(render(story))


def test_thousands_of_lines_of_a_hundred_requests_are_replayed_at_once() -> None:
    stories: Sequence[Story] = [Story(machine_id) for machine_id in range(1, 101)]
    for story in stories:
        for fence in range(1, 9):
            story.lease(fence, "ab"[fence % 2]).start(fence, "ab"[fence % 2]).dead(fence, "ab"[fence % 2])
            story.expire(fence, "ab"[fence % 2])
        story.lease(9, "a").finish(9, "a")
    lines = render(*stories)
    assert len(lines) > 4000
    replay(lines, ended=True)
