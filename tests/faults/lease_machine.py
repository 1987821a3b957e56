"""The lease machine: Hypothesis tells stories of agents, hosts and networks, and every one must keep the laws.

    .venv/bin/python -m tests.faults.lease_machine --stories 15 --words 20

Runs in a process of its own, which forks the agents: no thread and no loop beside it. A story that breaks a law is
printed as a list, which `replay` (or --replay FILE) tells again. Nothing is shrunk: real processes take real time.
Rules depend on what was told so far and never on what came of it, so that Hypothesis meets the same choices again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.faults.leaseplane import WAYS
from tests.faults.story_end import finish_story
from tests.faults.world import NAMES, Crime, World, open_world

Word = tuple[Any, ...]
MAX_REQUESTS = 4
INDEXES = st.integers(0, 11)  # of whatever there is to choose from
PAUSES = st.sampled_from((0, 3, 8, 15))  # tenths of a second
_stage: list[tuple[World, bool]] = []  # and whether each word is printed; Hypothesis makes the machines itself


class LeaseMachine(RuleBasedStateMachine):
    """One story. Each rule is one word, an act of World by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.world, self.verbose = _stage[0]
        self.story: list[Word] = []
        self.requests = 0
        self.closed: list[int] = []  # requests whose gate was not opened
        self.up = set(NAMES)
        self.frozen: set[str] = set()
        self.cut: set[str] = set()
        self.broken = False

    def say(self, pause: int, *word: Any) -> None:
        """One more word, and the time that passes after it; all laws are looked at after each."""
        for each in [word, ("tick", pause)] if pause else [word]:
            self.story.append(each)
            if self.verbose:
                say(f"  {json.dumps(each)}")
            self.broken = True  # until it was told
            try:
                tell_word(self.world, each)
            except Crime:
                say_story(self.story)
                raise
            self.broken = False

    @initialize(requests=st.integers(1, 2), pause=PAUSES)
    def begin(self, requests: int, pause: int) -> None:
        self.world.begin()
        for _ in range(requests):
            self.submit_one(0)
        self.say(pause, "tick", 5)

    @precondition(lambda self: self.requests < MAX_REQUESTS)
    @rule(pause=PAUSES)
    def submit(self, pause: int) -> None:
        self.submit_one(pause)

    def submit_one(self, pause: int) -> None:
        self.closed.append(self.requests)
        self.requests += 1
        self.say(pause, "submit")

    @rule(tenths=st.integers(8, 45))
    def tick(self, tenths: int) -> None:
        self.say(0, "tick", tenths)

    @precondition(lambda self: self.closed)
    @rule(index=INDEXES, code=st.sampled_from((0, 7)), pause=PAUSES)
    def end_job(self, index: int, code: int, pause: int) -> None:
        self.say(pause, "end_job", self.closed.pop(index % len(self.closed)), code)

    @precondition(lambda self: self.closed)
    @rule(index=INDEXES, act=st.sampled_from(("kill_vmm", "kill_keeper", "lose")), pause=PAUSES)
    def hurt(self, index: int, act: str, pause: int) -> None:
        self.say(pause, act, self.closed[index % len(self.closed)])

    @precondition(lambda self: self.up)
    @rule(index=INDEXES, act=st.sampled_from(("restart_killed", "restart_stopped")), pause=PAUSES)
    def restart(self, index: int, act: str, pause: int) -> None:
        name = pick(self.up, index)
        self.frozen.discard(name)
        self.say(pause, act, name)

    @precondition(lambda self: self.up)
    @rule(index=INDEXES, act=st.sampled_from(("kill", "stop", "interrupt", "drain")), pause=PAUSES)
    def end(self, index: int, act: str, pause: int) -> None:
        name = pick(self.up, index)
        self.frozen.discard(name)
        self.up.discard(name)
        if act == "drain":
            self.say(0, "thaw", name)
        self.say(pause, act, name)

    @precondition(lambda self: len(self.up) < len(NAMES))
    @rule(index=INDEXES, act=st.sampled_from(("start", "stop", "kill", "interrupt")), pause=PAUSES)
    def follow(self, index: int, act: str, pause: int) -> None:
        """The next life, or another word to one that drains."""
        name = pick(set(NAMES) - self.up, index)
        if act == "start":
            self.up.add(name)
        self.say(pause, act, name)

    @precondition(lambda self: self.up - self.frozen)
    @rule(index=INDEXES, pause=PAUSES)
    def freeze(self, index: int, pause: int) -> None:
        name = pick(self.up - self.frozen, index)
        self.frozen.add(name)
        self.say(pause, "freeze", name)

    @precondition(lambda self: self.frozen)
    @rule(index=INDEXES, pause=PAUSES)
    def thaw(self, index: int, pause: int) -> None:
        name = pick(self.frozen, index)
        self.frozen.discard(name)
        self.say(pause, "thaw", name)

    @precondition(lambda self: len(self.cut) < len(NAMES))
    @rule(index=INDEXES, way=st.sampled_from(WAYS), pause=PAUSES)
    def lose_network(self, index: int, way: str, pause: int) -> None:
        name = pick(set(NAMES) - self.cut, index)
        self.cut.add(name)
        self.say(pause, "cut", name, way)

    @precondition(lambda self: self.cut)
    @rule(index=INDEXES, pause=PAUSES)
    def heal(self, index: int, pause: int) -> None:
        name = pick(self.cut, index)
        self.cut.discard(name)
        self.say(pause, "heal", name)

    @rule(name=st.sampled_from(NAMES), pause=PAUSES)
    def purge(self, name: str, pause: int) -> None:
        self.say(pause, "purge", name)

    def teardown(self) -> None:
        if not self.broken and self.story:
            finish(self.world, self.story)
            if self.verbose:
                say(f"good so far: {self.world.account}")


def pick(names: set[str], index: int) -> str:
    """Pure: one of them."""
    return sorted(names)[index % len(names)]


def tell_word(world: World, word: Word) -> None:
    """One act, and a look at all laws."""
    getattr(world, word[0])(*word[1:])
    world.look()


def finish(world: World, story: Sequence[Word]) -> None:
    """The end of a story without more faults."""
    try:
        finish_story(world)
    except Crime:
        say_story(story)
        raise


def replay(story: Sequence[Word]) -> None:
    """Tell one story again. Raises Crime where it breaks a law."""
    with open_world() as world:
        world.begin()
        for word in story:
            tell_word(world, word)
        finish_story(world)


def say_story(story: Sequence[Word]) -> None:
    say(f"replay({json.dumps(story)})")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell_stories(stories: int, words: int, seed: int | None) -> None:
    """As many stories as asked; the same ones each time, but for a seed."""
    chosen = settings(
        max_examples=stories,
        stateful_step_count=words,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    if seed is not None:
        LeaseMachine._hypothesis_internal_use_seed = seed  # what @seed sets
    run_state_machine_as_test(LeaseMachine, settings=chosen)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.faults.lease_machine")
    parser.add_argument("--stories", type=int, default=3)
    parser.add_argument("--words", type=int, default=10, help="of each story, at most")
    parser.add_argument("--seed", type=int, help="other stories than the fixed ones")
    parser.add_argument("--replay", type=Path, help="a file with one story, as a failure prints it")
    parser.add_argument("--verbose", action="store_true", help="print each word as it is told")
    asked = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Hypothesis takes a SystemExit for a failure
    try:
        if asked.replay is not None:
            text = asked.replay.read_text().strip().removeprefix("replay(").removesuffix(")")
            replay([tuple(word) for word in json.loads(text)])
            return
        with open_world() as world:
            _stage.append((world, asked.verbose))
            tell_stories(asked.stories, asked.words, asked.seed)
            leases = ", ".join(f"{count} {how}" for how, count in sorted(world.account.items()))
        say(f"lease machine: {world.stories} stories in {time.monotonic() - began:.0f} s, 0 crimes; leases: {leases}")
    except Crime as crime:
        say(f"CRIME: {crime}")
        sys.exit(1)


if __name__ == "__main__":
    main()
