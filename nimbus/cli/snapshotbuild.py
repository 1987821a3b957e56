"""`nimbus snapshots build`: one template, made by host_agent/snapshots from a machine that is thrown away.

A part of nimbus.cli.snapshots.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing

import click
import trio

from nimbus.cli.events import quiet_events
from nimbus.cli.run import note_signals, parse_mib
from nimbus.cli.snapshottable import MIB, Entry, describe
from nimbus.host import caps
from nimbus.host_agent.build import Host
from nimbus.host_agent.settings import HostSettings, find_host, read_settings
from nimbus.host_agent.snapshots.build import build_template
from nimbus.host_agent.snapshots.templates import Templates
from nimbus.model.errors import HostFault
from nimbus.model.vm import Shape
from nimbus.storage.content import ImageStore
from nimbus.storage.images import DEFAULT_IMAGE, Image, resolve_image
from nimbus.storage.templates import Template


@click.command()
@click.option("--image", default=DEFAULT_IMAGE, show_default=True, help="`nimbus assets list` shows them.")
@click.option("--cpus", default=1, show_default=True, help="vCPUs.")
@click.option("--memory", default="256M", show_default=True, help="Guest memory, like 512M or 2G.")
@click.option("--disk", default="2G", show_default=True, help="Size of the throw-away disk, like 10G (sparse).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def build(image: str, cpus: int, memory: str, disk: str, as_json: bool) -> None:
    """Boot a machine until its guest agent listens, keep its memory and disk, and throw the machine away.

    \b
    nimbus snapshots build
    nimbus snapshots build --image base --cpus 2 --memory 2G --disk 10G

    Where the very same template is there and whole, nothing is built.
    """
    quiet_events()
    started = time.monotonic()
    shape = Shape(cpus, parse_mib(memory), parse_mib(disk))
    host = find_host(read_settings(HostSettings))
    missing = caps.missing_for_vm(qemu=host.choice.vmm.name == "qemu")
    if missing:
        raise HostFault("; ".join(missing))
    found = resolve_image(
        ImageStore(host.layout.images), image, kernel=host.kernel_override, rootfs=host.rootfs_override
    )
    template, signum = _build_until_signal(host, found, shape, say_since(started))
    if template is None:
        sys.exit(128 + (signum or 0))
    seconds = time.monotonic() - started
    if as_json:
        click.echo(json.dumps(describe(Entry(template.digest, "ready", template)) | {"seconds": round(seconds, 3)}))
        return
    click.echo(f"template {template.digest}")
    used = template.touched_bytes / MIB
    click.echo(f"  {image}, {cpus} vCPU, {shape.mem_mib} MiB of memory of which {used:.0f} are used; {seconds:.1f} s")


def say_since(started: float) -> Callable[[str], None]:
    """Progress goes to stderr: stdout is the result."""
    return lambda line: click.echo(f"{time.monotonic() - started:7.2f} s  {line}", err=True)


def _build_until_signal(
    host: Host, image: Image, shape: Shape, say: Callable[[str], None]
) -> tuple[Template | None, int | None]:
    """The template, or None and the signal that ended the building. Nothing of its machine is left either way."""
    caught, heeded = note_signals()

    async def build_it() -> Template | None:
        template = None
        with closing(Templates(host.layout, host.choice)) as templates, trio.open_signal_receiver(*heeded) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_hear_signals, signals, caught, nursery.cancel_scope)
                if caught:
                    nursery.cancel_scope.cancel()
                template = await build_template(host, templates, image, shape, say)
                nursery.cancel_scope.cancel()
        return template

    template = trio.run(build_it)
    return template, caught[0] if caught else None


async def _hear_signals(signals: AsyncIterator[int], caught: list[int], scope: trio.CancelScope) -> None:
    """The first one ends the building; the teardown that follows has limits of its own."""
    async for signum in signals:
        caught.append(signum)
        scope.cancel()
