"""What one VM was to be kept within, beside what the kernel keeps it within now: CPUs, vCPU threads, cgroup files.

Reads only, some small kernel files; synchronous. A VMM names its threads itself, so names only say which vCPU a person
is shown. Called by inspection.py.
"""

from __future__ import annotations

import re
from typing import Any

from nimbus.host import cgroup
from nimbus.host_agent.claims import plan_limits
from nimbus.host_agent.pinning import ThreadPlace, read_threads
from nimbus.host_agent.plan import HostLayout, VmPlan
from nimbus.model.placement import render_cpus

Facts = dict[str, Any]

_VCPU = re.compile(r"(?:CPU (\d+)/(?:TCG|KVM)|fc_vcpu (\d+))")  # QEMU's names and Firecracker's


def describe_cpus(plan: VmPlan) -> Facts:
    """Its own CPUs, and where each of its threads may run."""
    placement, threads = plan.placement, read_threads(plan.object)
    vcpus = {number: place for place in threads if (number := number_vcpu(place.name)) is not None}
    others = frozenset[int]().union(*(place.cpus for place in threads if place not in vcpus.values()))
    return {
        "own": render_cpus(placement.cpus) if placement else None,
        "nodes": render_cpus(placement.mems) if placement else None,
        "shared": placement is None,
        "vcpus": [_describe_vcpu(plan, number, vcpus[number]) for number in sorted(vcpus)],
        "other_threads": render_cpus(others),
    }


def describe_limits(layout: HostLayout, plan: VmPlan) -> list[Facts]:
    """Each file of its cgroup that limits it: what this agent's settings ask for, and what the kernel holds."""
    asked = {knob: value for knobs in _ask(layout, plan).values() for knob, value in knobs.items()}
    held = cgroup.read_limits(plan.object)
    return [
        {"file": knob, "asked": asked.get(knob), "held": value}
        for knob, value in held.items()
        if knob in asked or value is not None
    ]


def find_degradations(layout: HostLayout, plan: VmPlan) -> list[str]:
    """What it should be kept within and is not, as the kernel shows it now; nothing where its cgroup is gone."""
    if not cgroup.cgroup_dir(plan.object).is_dir():
        return []
    held = cgroup.read_limits(plan.object)
    lacking = [
        f"{controller} is not limited: cgroup v2 has no {controller} controller here"
        for controller, knobs in _ask(layout, plan).items()
        if all(held[knob] is None for knob in knobs)
    ]
    strayed = [
        f"vCPU {fact['vcpu']} may run on CPUs {fact['held']} in place of {fact['asked']}"
        for fact in describe_cpus(plan)["vcpus"]
        if fact["asked"] not in (None, fact["held"])
    ]
    return [*lacking, *strayed]


def number_vcpu(name: str) -> int | None:
    """Pure: which vCPU a thread of this name is; None for another thread."""
    found = _VCPU.fullmatch(name)
    return int(found[1] or found[2]) if found else None


def _ask(layout: HostLayout, plan: VmPlan) -> dict[str, dict[str, str]]:
    return cgroup.render_limits(plan_limits(plan.shape, plan.placement, layout.io))


def _describe_vcpu(plan: VmPlan, number: int, place: ThreadPlace) -> Facts:
    asked = None
    if plan.placement is not None and number < len(plan.placement.vcpus):
        asked = str(plan.placement.vcpus[number])
    return {"vcpu": number, "asked": asked, "held": render_cpus(place.cpus), "thread": place.tid}
