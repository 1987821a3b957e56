"""`make bench-run`: what `nimbus run` costs over the bare VMM command, cold, in interleaved samples.

Three promises: from main entered to the exit status at most 15 % over the floor at p50; the interpreter and the
imports, apart, at most 0.5 s; the teardown, apart, at most 0.3 s. Run as root, on a host that is not busy.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.frame import Bound, finish, interleave, percentile
from nimbus.host.disk import clone_file
from nimbus.host.slots import claim_slot, release_slot
from nimbus.host_agent.network import acquire_network, release_network
from nimbus.host_agent.plan import VmPlan, plan_vm
from nimbus.host_agent.settings import HostSettings, find_host
from nimbus.host_agent.vmm.machine import Boot
from nimbus.host_agent.vmm.qemu import Qemu
from nimbus.model.ids import new_vm_id, object_name
from nimbus.model.vm import Command, Shape
from nimbus.storage.content import ImageStore
from nimbus.storage.images import DEFAULT_IMAGE, overlay_template, resolve_image
from nimbus.wire.guestjob import GuestNetwork, Job
from nimbus.wire.guestlink import NONCE_BYTES, render_attach, render_exit_ack, render_job_frames

OVERHEAD_MAX = 0.15
IMPORTS_MAX_S = 0.5
TEARDOWN_MAX_S = 0.3
CREDIT_BYTES = 1 << 20
ROUNDS = 15


@dataclass(frozen=True)
class Floor:
    """The floor's input, and the disk that each boot gets a fresh copy of."""

    spec: dict[str, object]
    template: Path
    overlay: Path


@contextmanager
def open_floor(folder: Path) -> Iterator[Floor]:
    """A network like a VM's own and the argv of `nimbus run`, with the host's paths in place of the jail's."""
    host = find_host(HostSettings())
    layout, vm = host.layout, new_vm_id()
    name = object_name(layout.root_id, vm)
    store = ImageStore(layout.images)
    image = resolve_image(store, DEFAULT_IMAGE)
    shape = Shape()
    slot = claim_slot(layout.runtime, name, limit=layout.slot_limit, uid_base=layout.uid_base)
    try:
        plan = plan_vm(layout, vm, shape=shape, image=image.name, backend="qemu", accel=host.choice.accel, slot=slot)
        acquire_network(plan.net)
        try:
            template = overlay_template(store, shape.disk_mib)
            boot = Boot(image, host.choice.binary, host.tsc_khz)
            yield Floor(plan_floor(plan, boot, folder), template, folder / "disk" / "overlay.img")
        finally:
            release_network(plan.net.name)
    finally:
        release_slot(layout.runtime, slot.index, name)


def plan_floor(plan: VmPlan, boot: Boot, folder: Path) -> dict[str, object]:
    """What floor.py reads on stdin."""
    described = Qemu().describe(plan, boot)
    moved = {bind.target: bind.source for bind in described.binds if bind.target.startswith("/boot/")}
    moved |= {"/vm/run": str(folder / "run"), "/vm/disk": str(folder / "disk")}
    argv = list(described.argv)
    for inside, outside in moved.items():
        argv = [word.replace(inside, outside) for word in argv]
    return {
        "argv": ["nsenter", f"--net=/run/netns/{plan.net.name}", "--", *argv],
        "link": str(folder / "run" / "link.sock"),
        "console": str(folder / "console"),
        "frames": {
            "attach": render_attach(1, secrets.token_bytes(NONCE_BYTES), (0, 0), (CREDIT_BYTES, CREDIT_BYTES)).hex(),
            "job": render_job_frames(plan_job(plan)).hex(),
            "exit_ack": render_exit_ack().hex(),
        },
    }


def plan_job(plan: VmPlan) -> Job:
    """`true`, with the network and the clock that a real job gets."""
    network = GuestNetwork(plan.net.guest, plan.net.gateway.ip)
    entropy = secrets.token_bytes(32)
    return Job(Command(("true",)), hostname="floor", network=network, wall_clock_ns=time.time_ns(), entropy=entropy)


def measure_floor(floor: Floor) -> dict[str, float]:
    for folder in ("run", "disk"):
        path = floor.overlay.parent.parent / folder
        path.mkdir(exist_ok=True)
        for old in path.iterdir():
            old.unlink()
    clone_file(floor.template, floor.overlay)
    done = subprocess.run(
        [sys.executable, "-I", Path(__file__).with_name("floor.py")],
        input=json.dumps(floor.spec),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"the floor failed: {done.stderr}{Path(str(floor.spec['console'])).read_text(errors='replace')}")
    told = json.loads(done.stdout)
    return {"main_ms": told["main"], "hello_ms": told["hello"]}


def nimbus(*words: str) -> tuple[float, str]:
    began = time.monotonic()
    argv = [sys.executable, "-m", "nimbus", "run", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    took_ms = (time.monotonic() - began) * 1000
    if done.returncode != 0:
        sys.exit(f"nimbus run {' '.join(words)} failed: {done.stderr}")
    return took_ms, done.stdout


def measure_run() -> dict[str, float]:
    """One cold run; the imports are measured right beside it, by a call that loads the same and runs nothing."""
    wall_ms, out = nimbus("--json", "--", "true")
    imports_ms, _ = nimbus("--help")
    teardown_ms = json.loads(out)["phases_ms"]["teardown"]
    return {
        "wall_ms": wall_ms,
        "imports_ms": imports_ms,
        "teardown_ms": teardown_ms,
        "main_ms": wall_ms - imports_ms - teardown_ms,
    }


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    if os.geteuid() != 0:
        sys.exit("bench-run boots VMs on taps of its own: run it as root")
    with tempfile.TemporaryDirectory(prefix="nimbus-bench-") as folder, open_floor(Path(folder)) as floor:
        samples = interleave({"floor": lambda: measure_floor(floor), "nimbus": measure_run}, rounds)
        facts = {"floor_argv": floor.spec["argv"]}
    overhead = percentile(samples["nimbus.main_ms"], 50) / percentile(samples["floor.main_ms"], 50) - 1
    bounds = [
        Bound("overhead of nimbus run over the bare VMM, main to status, p50", overhead, OVERHEAD_MAX),
        Bound("interpreter and imports, p50, s", percentile(samples["nimbus.imports_ms"], 50) / 1000, IMPORTS_MAX_S),
        Bound("teardown, p50, s", percentile(samples["nimbus.teardown_ms"], 50) / 1000, TEARDOWN_MAX_S),
    ]
    return finish("run", samples, bounds, facts=facts, plotted=["floor.main_ms", "nimbus.main_ms"])


if __name__ == "__main__":
    sys.exit(main())
