"""Every call of a boot and of a restore refused, unanswered or cut off: named as it is, undone whole. On the fakes."""

from __future__ import annotations

import pytest

from nimbus.host_agent.vmm.fcapi import CallLimits
from nimbus.host_agent.vmm.firecracker import Firecracker, plan_boot
from nimbus.host_agent.vmm.launch import RestoreFailed
from nimbus.model.errors import HostFault
from tests.fakes.install import Fakes
from tests.firecracker.bench import IDLE, Bench, open_plan, open_template, run_until_it_fails
from tests.unit.host_agent.test_firecracker import PLAN

pytestmark = [pytest.mark.root, pytest.mark.parametrize("bench", ["fake"], indirect=True)]

BOOT = [str(call) for call in plan_boot(PLAN)]
FIRST = ["GET /", "GET /version"]
RESTORE = ["PUT /snapshot/load", "GET /vm/config", "PUT /mmds", "PATCH /vm"]
LIMITS = CallLimits(quick_s=2.0, slow_s=2.0)
WORD = "not today: (os error 5)"


def fakes_of(bench: Bench) -> Fakes:
    return Fakes(bench.territory.state_root / "fakes")


@pytest.mark.parametrize("call", [*FIRST, *BOOT])
async def test_a_call_that_is_refused_at_a_boot_is_told_word_for_word(bench: Bench, call: str) -> None:
    fakes_of(bench).set_faults(calls={call: {"do": "refuse", "text": WORD}})
    async with open_plan(bench) as (plan, boot):
        with pytest.raises(HostFault) as caught:
            await run_until_it_fails(plan, boot, bench)
    assert f"{call}: {WORD}" in str(caught.value)


@pytest.mark.parametrize("call", ["GET /version", "PUT /machine-config", "PUT /actions"])
async def test_a_call_without_an_answer_is_given_up_at_its_limit(bench: Bench, call: str) -> None:
    hasty = bench.with_vmm(Firecracker(LIMITS, kernel_line=IDLE))
    fakes_of(bench).set_faults(calls={call: {"do": "hang"}})
    async with open_plan(hasty) as (plan, boot):
        with pytest.raises(HostFault, match=f"no answer to {call} in 2 s"):
            await run_until_it_fails(plan, boot, hasty)


@pytest.mark.parametrize("call", RESTORE)
async def test_a_call_that_is_refused_at_a_restore_costs_the_template_its_trust_and_not_the_job(
    bench: Bench, call: str
) -> None:
    async with open_template(bench) as (templated, _):
        fakes_of(bench).set_faults(calls={call: {"do": "refuse", "text": WORD}})
        async with open_plan(templated) as (plan, boot):
            with pytest.raises(RestoreFailed) as caught:
                await run_until_it_fails(plan, boot, templated)
        fakes_of(bench).set_faults()
    assert f"{call}: {WORD}" in str(caught.value)


async def test_a_load_without_an_answer_is_given_up_and_its_process_killed(bench: Bench) -> None:
    async with open_template(bench) as (templated, _):
        hasty = templated.with_vmm(Firecracker(LIMITS, kernel_line=IDLE))
        fakes_of(bench).set_faults(calls={"PUT /snapshot/load": {"do": "hang"}})
        async with open_plan(templated) as (plan, boot):
            with pytest.raises(RestoreFailed, match="no answer to PUT /snapshot/load in 2 s"):
                await run_until_it_fails(plan, boot, hasty)
        fakes_of(bench).set_faults()
