"""A host with a template of the base image, for tests that boot clones of it."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from nimbus.cli.run import open_local_lease
from nimbus.host.inventory import Territory
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.snapshots.build import build_template
from nimbus.host_agent.snapshots.templates import Templates
from nimbus.host_agent.vmm.qemu import Qemu
from nimbus.model.vm import Shape
from nimbus.storage.content import ImageStore
from nimbus.storage.images import Image, resolve_image
from nimbus.storage.templates import Template
from tests.guests import count_boots
from tests.hosts import Collected, TestHost, make_host

LIMIT_S = 180.0


@dataclass(frozen=True)
class CloneHost:
    """One host, its template, and the way to run a command in a clone."""

    test: TestHost
    templates: Templates
    template: Template
    image: Image

    async def run(self, script: str, shape: Shape = Shape()) -> tuple[Outcome, Collected]:  # noqa: B008
        """A shell's script in one machine."""
        out = Collected()
        with trio.fail_after(LIMIT_S), open_local_lease() as lease:
            order = self.test.order("sh", "-c", script, sink=out, shape=shape)
            outcome = await run_machine(self.test.host, order, lease)
        count_boots("qemu", outcome.boots)
        return outcome, out


def was_restored(outcome: Outcome) -> bool:
    """Whether its memory was a template's."""
    return "load" in outcome.phases_ms


@asynccontextmanager
async def open_clone_host(territory: Territory, vmm: Qemu | None = None) -> AsyncIterator[CloneHost]:
    """A host in `territory` with a fresh template; `vmm` in the place of the usual QEMU."""
    made = make_host(territory, "qemu")
    choice = made.host.choice if vmm is None else replace(made.host.choice, vmm=vmm)
    templates = Templates(made.host.layout, choice)
    host = replace(made.host, choice=choice, templates=templates)
    image = resolve_image(ImageStore(host.layout.images), "base")
    try:
        with trio.fail_after(LIMIT_S):
            template = await build_template(host, templates, image, Shape())
        yield CloneHost(replace(made, host=host), templates, template, image)
    finally:
        templates.close()
        gc.collect()  # the traceback of a job's fault holds what it booted from, in a circle


def now() -> int:
    """Unix seconds of this host."""
    return int(time.time())
