"""A host whose VMM is our own Firecracker under our own jailer, with a template that clones boot from.

Works wherever the fake VMM does: neither KVM nor a real binary is asked for. The image is files that nothing boots
from. Called by case.py, one_run.py and tests.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import trio

from nimbus.host_agent.build import SHARED, Host
from nimbus.host_agent.instance import single_instance
from nimbus.host_agent.main import run_agent
from nimbus.host_agent.placing import Pinning, Places, Wish, read_places
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.policies import with_pool
from nimbus.host_agent.pool.reserve import Reserve
from nimbus.host_agent.pool.sizes import PoolPolicy, parse_pool
from nimbus.host_agent.settings import AgentSettings, find_layout, read_settings
from nimbus.host_agent.snapshots.build import build_template
from nimbus.host_agent.snapshots.templates import Templates
from nimbus.host_agent.vmm.choice import Choice
from nimbus.host_agent.vmm.firecracker import Firecracker
from nimbus.model.errors import HostFault
from nimbus.model.vm import Shape
from nimbus.runtime.listening import run_room
from nimbus.runtime.telemetry import configure_logging
from nimbus.storage.content import Blob, ImageStore, hash_file, publish
from nimbus.storage.images import ROLES, Image, Manifest, Provenance, put_manifest, resolve_image
from tests.fakes.install import Fakes, install_fakes

IMAGE = "base"
FILL_S = 60.0


def install_host(state: Path) -> Fakes:
    """The two programs and the image, below a state root."""
    store = ImageStore(state / "images")
    put_manifest(store, Manifest(IMAGE, "now", "none", _put_files(store), Provenance("0" * 64)))
    return install_fakes(state / "fakes")


def _put_files(store: ImageStore) -> dict[str, Blob]:
    """One file for all roles: the fake looks at no more than its beginning."""
    content = b"\x7fELF" + bytes(508)
    probe = store.root / "file"
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(content)
    blob = hash_file(probe)
    publish(probe, store.blob_path(blob.sha256))
    return dict.fromkeys(ROLES, blob)


def find_image(layout: HostLayout) -> Image:
    """As an agent finds it."""
    return resolve_image(ImageStore(layout.images), IMAGE)


def make_clone_host(layout: HostLayout, fakes: Fakes, *, templates: bool = True, places: Places = SHARED) -> Host:
    """The host as an agent's settings would make it on one with KVM."""
    choice = Choice(Firecracker(), "kvm", fakes.firecracker.resolve(), fakes.jailer)
    return Host(layout, choice, 0, Templates(layout, choice) if templates else None, places=places)


def find_places() -> Places:
    """CPUs of their own for its VMs, where this host has as many cores as two machines at once need."""
    try:
        places = read_places(Wish(Pinning.ON, frozenset()))
    except HostFault:
        return SHARED
    return replace(places, must=False) if places.cores is not None and len(places.cores.cores) > 1 else SHARED


def run_clone_agent(fakes: Fakes, *, templates: bool) -> None:
    """The agent as its own `main` runs it, but for the choice of the VMM, which would ask for KVM. Ends the process."""
    settings = cast("AgentSettings", read_settings(AgentSettings))
    configure_logging(settings.log_level)
    host = with_pool(make_clone_host(find_layout(settings), fakes, templates=templates, places=find_places()), settings)
    with single_instance(host.layout.state) as start:
        sys.exit(run_room("nimbus agent", run_agent, settings, host, start))


def ensure_template(layout: HostLayout, fakes: Fakes) -> str:
    """Build the one that clones of IMAGE boot from, where it is not there; its digest."""
    return trio.run(build_clone_template, make_clone_host(layout, fakes))


async def build_clone_template(host: Host) -> str:
    """The same for a caller with a loop of its own."""
    assert host.templates is not None
    return (await build_template(host, host.templates, find_image(host.layout), Shape())).digest


@asynccontextmanager
async def open_pool(host: Host, sizes: str) -> AsyncIterator[Host]:
    """The host with a pool in which a machine waits when the block begins."""
    assert host.templates is not None
    reserve = Reserve(host, host.templates, PoolPolicy(parse_pool(sizes)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reserve.run)
        with trio.fail_after(FILL_S):
            while not reserve.waiting:  # noqa: ASYNC110 - nothing but a look tells it
                await trio.sleep(0.01)
        yield replace(host, reserve=reserve)
        nursery.cancel_scope.cancel()
