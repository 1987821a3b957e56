"""Clones of one template are machines of their own: identity, randomness, clock, network, and nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from nimbus.host.inventory import Territory
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.machine import Boot, LaunchSpec
from nimbus.host_agent.vmm.qemu import Qemu
from nimbus.model.vm import Ending
from tests.hosts import Collected
from tests.oracle import leak_oracle
from tests.vm.snapshots import CloneHost, now, open_clone_host, was_restored

pytestmark = [pytest.mark.vm, pytest.mark.root]
__all__ = ["leak_oracle"]

CLONES = 20
WHO = (
    "cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 32 /dev/urandom | od -An -tx1 -v | tr -d ' \\n'; echo"
)
MONTH_S = 30 * 24 * 3600


@pytest.fixture
async def clones(leak_oracle: Territory) -> AsyncIterator[CloneHost]:
    async with open_clone_host(leak_oracle) as host:
        yield host


async def test_twenty_clones_at_once_are_twenty_machines(clones: CloneHost) -> None:
    told: list[str] = []

    async def run_one() -> None:
        outcome, out = await clones.run(WHO)
        assert (outcome.ending, outcome.clean, outcome.boots) == (Ending.DONE, True, 1), outcome.cause
        assert was_restored(outcome)
        told.append(out.stdout)

    async with trio.open_nursery() as nursery:
        for _ in range(CLONES):
            nursery.start_soon(run_one)
    identities = [words.split() for words in told]
    assert [len(words) for words in identities] == [3] * CLONES
    for kind in zip(*identities, strict=True):  # machine ids, boot ids, random bytes
        assert len(set(kind)) == CLONES
    assert all(len(words[0]) == 32 and len(words[2]) == 64 for words in identities)


async def test_what_a_clone_writes_no_other_clone_and_no_template_sees(clones: CloneHost) -> None:
    first, _ = await clones.run("echo mine > /etc/only-here; echo mine > /dev/shm/only-here; sync")
    second, out = await clones.run("ls /etc/only-here /dev/shm/only-here 2>/dev/null | wc -l")
    clones.templates.store.verify(clones.template)
    assert (first.ending, second.ending) == (Ending.DONE, Ending.DONE)
    assert was_restored(first)
    assert was_restored(second)
    assert out.stdout.strip() == "0"


async def test_a_clone_has_its_own_hosts_name_network_and_disk(clones: CloneHost) -> None:
    outcome, out = await clones.run("ip -4 addr show eth0 | grep -c 172.16.0.2; df -m / | tail -1 | wc -l; hostname")
    assert outcome.ending is Ending.DONE, outcome.cause
    assert out.stdout.split()[:2] == ["1", "1"]


class AgedQemu(Qemu):
    """Boots its guests into the past."""

    def describe(self, plan: VmPlan, boot: Boot) -> LaunchSpec:
        spec = super().describe(plan, boot)
        return LaunchSpec(**{**vars(spec), "argv": (*spec.argv, "-rtc", f"base={AGED}")})


AGED = "2024-01-01T00:00:00"


async def test_an_old_template_has_the_right_time_before_its_job_starts(leak_oracle: Territory) -> None:
    async with open_clone_host(leak_oracle, AgedQemu()) as host:
        outcome, out = await host.run("date +%s; stat -c %Y /run")
        asked_at = now()
    assert outcome.ending is Ending.DONE, outcome.cause
    assert was_restored(outcome)
    clock, booted = (int(word) for word in out.stdout.split())
    assert asked_at - booted > MONTH_S  # the template's guest did boot long ago, by its own clock
    assert abs(asked_at - clock) < 60


async def test_a_clones_output_arrives_whole(clones: CloneHost) -> None:
    outcome, out = await clones.run("head -c 3000000 /dev/zero | tr '\\0' x; echo done >&2")
    assert outcome.ending is Ending.DONE, outcome.cause
    assert isinstance(out, Collected)
    assert len(out.streams["stdout"]) == 3_000_000
    assert out.stderr == "done\n"
