"""Jailers that do less than they were asked and VMMs that fail at a call, through the whole lifecycle. On the fakes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import run_machine
from nimbus.model.vm import Ending
from tests.fakes.install import Fakes
from tests.hosts import Collected, TestHost, make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 90.0


@pytest.fixture
def host() -> Iterator[TestHost]:
    with open_territory() as territory:
        made = make_host(territory, "fake_firecracker")
        with watch_leaks(territory):
            yield made


def fakes_of(host: TestHost) -> Fakes:
    return Fakes(host.territory.state_root / "fakes")


async def run(host: TestHost) -> Outcome:
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        return await run_machine(host.host, host.order("true", sink=Collected()), lease)


@pytest.mark.parametrize(
    ("skip", "found"),
    [
        ("uid", "Uid of thread 'firecracker' is '0"),
        ("netns", "its network namespace is another"),
        ("cgroup", "its cgroup is 0::/"),
        ("seccomp", "Seccomp of thread 'fc_api' is '0'"),
    ],
)
async def test_a_jailer_that_leaves_a_wall_out_is_found_out(host: TestHost, skip: str, found: str) -> None:
    fakes_of(host).set_faults(jailer={"skip": [skip]})
    outcome = await run(host)
    assert (outcome.ending, outcome.clean) == (Ending.HOST_FAULT, True)
    assert "is not jailed as it was to be" in outcome.cause
    assert found in outcome.cause


async def test_a_jailer_that_fails_is_told_in_its_own_words(host: TestHost) -> None:
    fakes_of(host).set_faults(jailer={"do": "exit", "text": "no room at the inn", "code": 1})
    outcome = await run(host)
    assert (outcome.ending, outcome.clean) == (Ending.HOST_FAULT, True)
    assert "no room at the inn" in outcome.cause


@pytest.mark.parametrize(
    ("call", "fault", "said"),
    [
        ("GET /version", {"do": "refuse", "text": "ask me later"}, "refused GET /version: ask me later"),
        ("PUT /boot-source", {"do": "exit", "code": 148}, "exited 148"),
        ("PUT /drives/overlay", {"do": "half", "code": 1}, "exited 1"),
        ("PUT /actions", {"do": "exit_after", "code": 149}, "exited 149"),
        ("PUT /vsock", {"do": "drop"}, "PUT /vsock"),
    ],
)
async def test_a_boot_that_fails_at_a_call_names_it_or_its_death_and_leaves_nothing(
    host: TestHost, call: str, fault: dict[str, object], said: str
) -> None:
    fakes_of(host).set_faults(calls={call: fault})
    outcome = await run(host)
    assert (outcome.ending, outcome.clean) == (Ending.HOST_FAULT, True)
    assert said in outcome.cause


async def test_a_release_that_nobody_tried_is_refused_by_name(host: TestHost) -> None:
    fakes_of(host).set_faults(version="2.0.0")
    outcome = await run(host)
    assert (outcome.ending, outcome.clean) == (Ending.HOST_FAULT, True)
    assert "this host runs Firecracker 2.0.0" in outcome.cause
