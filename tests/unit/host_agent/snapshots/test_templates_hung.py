"""A disk or a store that hangs costs a machine its template, and never the machine: its boot is cold."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.lane import LOOK_LIMITER
from nimbus.host_agent.plan import ActLimits, HostLayout
from nimbus.host_agent.snapshots.templates import LIMITER, Templates
from nimbus.model.vm import Shape
from nimbus.storage.images import Image
from nimbus.storage.templates import Template
from tests.faults.clones import find_image, install_host, make_clone_host
from tests.unit.storage.templates import damage, make_files

LIMIT_S = 60.0


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    layout = HostLayout(tmp_path, tmp_path / "run", limits=ActLimits.within(1.0))
    choice = make_clone_host(layout, install_host(tmp_path)).choice
    return Templates(layout, choice, find_s=1.0)


@pytest.fixture
def image(templates: Templates, tmp_path: Path) -> Image:
    return find_image(HostLayout(tmp_path, tmp_path / "run"))


@contextmanager
def store_held(templates: Templates) -> Iterator[None]:
    """Somebody changes the store and does not come to an end."""
    fd = os.open(templates.store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


async def wait_threads(limiter: trio.CapacityLimiter) -> None:
    """Until what nobody waited for is done all the same."""
    with trio.fail_after(LIMIT_S):
        while limiter.borrowed_tokens:  # noqa: ASYNC110 - nobody else hears of it
            await trio.sleep(0.01)


async def publish(templates: Templates, image: Image, folder: Path) -> Template:
    key = await templates.key(image, Shape())
    return templates.store.publish(key, make_files(folder))


async def test_a_template_that_cannot_be_looked_at_in_time_is_no_template(
    templates: Templates, image: Image, tmp_path: Path
) -> None:
    template = await publish(templates, image, tmp_path / "vm")
    damage(template.memory, 0, b"another kernel")
    with trio.fail_after(LIMIT_S), store_held(templates):  # whoever finds it damaged waits to set it aside
        assert await templates.find(image, Shape()) is None
        assert await templates.find(image, Shape()) is None  # nor does the next one wait for the first
    await wait_threads(LIMITER)
    assert [one.digest for one in templates.store.quarantined()] == [template.digest]


async def test_a_clone_that_failed_boots_cold_though_its_template_cannot_be_set_aside_in_time(
    templates: Templates, image: Image, tmp_path: Path
) -> None:
    template = await publish(templates, image, tmp_path / "vm")
    with trio.fail_after(LIMIT_S), store_held(templates):
        await templates.distrust(template, "its clone did not run")
    assert not templates.is_trusted(template)
    await wait_threads(LOOK_LIMITER)
    assert [one.digest for one in templates.store.quarantined()] == [template.digest]
