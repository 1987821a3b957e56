"""What `make bench-boot` boots on: a host with a template, in a state root of its own, and each way to a ready machine.

A way is measured from the moment at which its work begins to the guest's first hello that says `prepared`: a floor from
the VMM's start, a machine of the agent from its lease. All that is made here is gone with the block. Called by boot.py.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from nimbus.host.disk import clone_file, remove_tree
from nimbus.host.slots import claim_slot, release_slot
from nimbus.host_agent.build import Host
from nimbus.host_agent.lease import open_lease
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import Order, run_machine
from nimbus.host_agent.network import acquire_network, release_network
from nimbus.host_agent.plan import VmPlan, plan_vm
from nimbus.host_agent.pool.reserve import Reserve
from nimbus.host_agent.pool.sizes import PoolPolicy, parse_pool
from nimbus.host_agent.snapshots.build import build_template
from nimbus.host_agent.snapshots.templates import ReadyTemplate, Templates
from nimbus.host_agent.ties import Ties
from nimbus.host_agent.vmm.machine import Boot
from nimbus.model.ids import new_vm_id, object_name
from nimbus.model.lease import LeaseKey, LeasePolicy
from nimbus.model.vm import Command, Ending, Shape
from nimbus.storage.content import ImageStore
from nimbus.storage.images import DEFAULT_IMAGE, Image, overlay_template, resolve_image
from nimbus.wire.guestlink import NONCE_BYTES, render_attach, render_prepare
from nimbus.wire.leaseapi import HeldState, RenewReply, RenewRequest

SHAPE = Shape()
CREDIT_BYTES = 1 << 20
FILL_LIMIT_S = 60.0
LOOK_S = 0.005
POOLED = {"slots": "built", "prespawned": "prespawned", "warm": "warm"}  # the bench's word, and the pool's
LEASE = LeaseKey(machine_id=1, lease_id="bench", fence=1)


@dataclass
class Renewals:
    """A control plane without a network: what it would take is not the agent's time."""

    started: trio.Event = field(default_factory=trio.Event)

    async def renew(self, request: RenewRequest) -> RenewReply:
        """Ever the same answer. The first that tells of a running command is noted."""
        await trio.lowlevel.checkpoint()
        if request.state is HeldState.RUNNING:
            self.started.set()
        return RenewReply(ttl_s=300.0, cancel=False)


class NoSink:
    """Output that nobody wants."""

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        await trio.lowlevel.checkpoint()
        return offset + len(data)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True)
class Lane:
    """A network that a floor's VMM gets, made ahead, and its folder."""

    plan: VmPlan
    folder: Path


@dataclass(frozen=True)
class BootHost:
    """See the module."""

    host: Host
    templates: Templates
    ready: ReadyTemplate
    image: Image
    lanes: tuple[Lane, ...]

    async def measure_floor(self, *, cold: bool, at_once: int = 1) -> list[dict[str, float]]:
        """Milliseconds of each of `at_once` bare VMMs that were started together."""
        return await trio.to_thread.run_sync(partial(self._measure_floor, cold, at_once))

    def _measure_floor(self, cold: bool, at_once: int) -> list[dict[str, float]]:
        running = [self._set_floor(lane, cold) for lane in self.lanes[:at_once]]
        for process in running:
            assert process.stdout is not None  # noqa: S101 - asked for
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None  # noqa: S101 - asked for
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate() for process in running]
        for process, lane, (_, err) in zip(running, self.lanes, told, strict=False):
            if process.returncode != 0:
                sys.exit(f"the floor failed: {err}{(lane.folder / 'console').read_text(errors='replace')}")
        return [json.loads(out) for out, _ in told]

    def _set_floor(self, lane: Lane, cold: bool) -> subprocess.Popen[str]:
        for name in ("run", "disk"):
            remove_tree(lane.folder / name)
            (lane.folder / name).mkdir()
        empty = overlay_template(ImageStore(self.host.layout.images), SHAPE.disk_mib)
        clone_file(empty if cold else self.ready.template.overlay, lane.folder / "disk" / "overlay.img")
        spec = self.plan_floor(lane, cold)
        fd = spec.get("memory_fd")
        argv = ["nsenter", f"--net=/run/netns/{lane.plan.net.name}", "--"]
        process = subprocess.Popen(
            [*argv, sys.executable, "-m", "bench.bootfloor"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[fd] if isinstance(fd, int) else [],
        )
        assert process.stdin is not None  # noqa: S101 - asked for
        process.stdin.write(json.dumps(spec) + "\n")
        process.stdin.flush()
        return process

    def plan_floor(self, lane: Lane, cold: bool) -> dict[str, object]:
        """What bootfloor.py reads on stdin."""
        boot = Boot(self.image, self.host.choice.binary, self.host.tsc_khz)
        boot = boot if cold else self.ready.boot(boot)
        described = self.host.choice.vmm.describe(lane.plan, boot)
        moved = {bind.target: bind.source for bind in described.binds if bind.target.startswith("/boot/")}
        moved |= {"/vm/run": str(lane.folder / "run"), "/vm/disk": str(lane.folder / "disk")}
        argv = list(described.argv)
        for inside, outside in moved.items():
            argv = [word.replace(inside, outside) for word in argv]
        prepare = render_prepare(time.time_ns(), secrets.token_bytes(32), secrets.token_bytes(16))
        attach = render_attach(1, secrets.token_bytes(NONCE_BYTES), (0, 0), (CREDIT_BYTES, CREDIT_BYTES))
        spec: dict[str, object] = {
            "argv": argv,
            "link": str(lane.folder / "run" / "link.sock"),
            "qmp": str(lane.folder / "run" / "qmp.sock"),
            "console": str(lane.folder / "console"),
            "frames": (prepare + attach).hex(),
        }
        if not cold:
            spec |= {"state": str(self.ready.template.state), "memory_fd": self.ready.memory_fd}
        return spec

    async def measure_agent(self, kind: str, *, at_once: int = 1) -> list[Outcome]:
        """How each of `at_once` machines, whose leases came together, was brought up, served and undone."""
        async with self.open_kind(kind, at_once) as host:
            return await self.run_all(host, at_once, Command(("true",)))

    @asynccontextmanager
    async def open_kind(self, kind: str, number: int) -> AsyncIterator[Host]:
        """The host for a block, with as many machines of that kind made ahead, if it is a pool's."""
        if kind not in POOLED:
            yield self.host if kind == "restored" else replace(self.host, templates=None)
            return
        size = f"{SHAPE.cpus}x{SHAPE.mem_mib}x{SHAPE.disk_mib} {POOLED[kind]}={number}"
        reserve = Reserve(self.host, self.templates, PoolPolicy(parse_pool(size)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reserve.run)
            with trio.fail_after(FILL_LIMIT_S):
                while len(reserve.waiting) < number:  # noqa: ASYNC110 - nothing but a look tells it
                    await trio.sleep(LOOK_S)
            yield replace(self.host, reserve=reserve)
            nursery.cancel_scope.cancel()

    async def run_all(
        self, host: Host, at_once: int, command: Command, renewals: tuple[Renewals, ...] = ()
    ) -> list[Outcome]:
        """The same command in each of them."""
        ended: list[Outcome] = []

        async def run_one(control: Renewals) -> None:
            async with open_lease(control, LEASE, LeasePolicy()) as lease:
                outcome = await run_machine(host, self._order(command), lease)
            if (outcome.ending, outcome.boots, outcome.clean) != (Ending.DONE, 1, True):
                raise SystemExit(f"a machine was not served as it should: {outcome}")
            ended.append(outcome)

        async with trio.open_nursery() as nursery:
            for control in renewals or (Renewals() for _ in range(at_once)):
                nursery.start_soon(run_one, control)
        return ended

    def _order(self, command: Command) -> Order:
        async def give() -> Command:  # noqa: ASYNC124 - a lease's command comes over the network, this one is here
            return command

        @asynccontextmanager
        async def open_sink(_: OpenRecord) -> AsyncIterator[NoSink]:
            yield NoSink()

        return Order(SHAPE, self.image, give, Ties(open_sink))


@asynccontextmanager
async def open_boot_host(found: Host, at_once: int) -> AsyncIterator[BootHost]:
    """This host in a state root of the bench's own, with a fresh template, and lanes for that many floors."""
    with _open_root(found) as layout_host, ExitStack() as stack:
        templates = Templates(layout_host.layout, layout_host.choice)
        stack.callback(templates.close)
        host = replace(layout_host, templates=templates)
        image = resolve_image(ImageStore(host.layout.images), DEFAULT_IMAGE)
        await build_template(host, templates, image, SHAPE)
        ready = await templates.find(image, SHAPE)
        assert ready is not None  # noqa: S101 - built one line above
        folder = host.layout.state / "floor"
        folder.mkdir()
        lanes = tuple(stack.enter_context(_open_lane(host, folder)) for _ in range(at_once))
        yield BootHost(host, templates, ready, image, lanes)


@contextmanager
def _open_root(found: Host) -> Iterator[Host]:
    """The host with another state root, over the images that are there."""
    root = Path(tempfile.mkdtemp(prefix="nbboot", dir="/tmp"))
    try:
        (root / "images").symlink_to(found.layout.images)
        yield replace(found, layout=replace(found.layout, state=root), templates=None)
    finally:
        purge = [sys.executable, "-m", "nimbus", "vms", "purge", "--all"]
        subprocess.run(purge, check=False, env={**os.environ, "NIMBUS_STATE_DIR": str(root)}, stdout=subprocess.DEVNULL)
        remove_tree(root)


@contextmanager
def _open_lane(host: Host, folder: Path) -> Iterator[Lane]:
    layout, vm = host.layout, new_vm_id()
    name = object_name(layout.root_id, vm)
    slot = claim_slot(layout.runtime, name, limit=layout.slot_limit, uid_base=layout.uid_base)
    choice = host.choice
    try:
        plan = plan_vm(
            layout, vm, shape=SHAPE, image=DEFAULT_IMAGE, backend=choice.vmm.name, accel=choice.accel, slot=slot
        )
        acquire_network(plan.net)
        try:
            own = folder / name
            own.mkdir()
            yield Lane(plan, own)
        finally:
            release_network(plan.net.name)
    finally:
        release_slot(layout.runtime, slot.index, name)


def read_steps(outcome: Outcome) -> Mapping[str, float]:
    """Pure: when it was ready, how much of that was the VMM's and the guest's, and what is left: the agent's own.

    The guest's time begins as it is asked: what the agent does while a resumed guest finds its feet counts as its own.
    """
    told = outcome.phases_ms
    vmm = sum(told.get(name, 0.0) for name in ("spawn", "load", "run"))
    guest = told["ready"] - told["asked"]
    return {"ready": told["ready"], "vmm": vmm, "guest": guest, "own": told["ready"] - vmm - guest}
