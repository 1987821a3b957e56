"""The same stories told to the fake Firecracker and, where it is, to the real one: both answer as was recorded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.fakes.install import install_fakes
from tests.fakes.play import Told, open_scene, play
from tests.fakes.record_refusals import read_record
from tests.fakes.stories import LOOSE, LOOSE_END, STORIES
from tests.hosts import needs_root

pytestmark = [needs_root, pytest.mark.root]


def told_alike(name: str, told: list[Told]) -> list[Told]:
    """The answers without what differs from one damage to the next."""
    if name not in LOOSE:
        return told
    return [{k: v.partition(LOOSE_END)[0] if isinstance(v, str) else v for k, v in one.items()} for one in told]


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    return install_fakes(tmp_path / "fakes").firecracker


@pytest.fixture
def real() -> Path:
    """The real Firecracker; the test is skipped where there is none."""
    found = os.environ.get("NIMBUS_FC_BIN") or shutil.which("firecracker")
    if found is None:
        pytest.skip("no firecracker on this host: name one by NIMBUS_FC_BIN")
    return Path(found)


@pytest.mark.parametrize("name", STORIES)
def test_the_fake_answers_as_the_real_one_did(fake: Path, tmp_path: Path, name: str) -> None:
    with open_scene([str(fake)], tmp_path) as scene:
        told = play(scene, STORIES[name])
    assert told_alike(name, told) == told_alike(name, read_record()["stories"][name])


@pytest.mark.needs_firecracker
@pytest.mark.parametrize("name", STORIES)
def test_the_real_one_still_answers_as_was_recorded(real: Path, tmp_path: Path, name: str) -> None:
    with open_scene([str(real)], tmp_path) as scene:
        told = play(scene, STORIES[name])
    assert told_alike(name, told) == told_alike(name, read_record()["stories"][name])


def test_none_of_our_calls_is_one_that_goes_out_of_use() -> None:
    told = [one for story in read_record()["stories"].values() for one in story]
    old = {one["ask"] for one in told if one.get("deprecated")}
    assert old <= {"PUT /mmds/config", "PUT /vsock"}  # for V1, and for a vsock_id: we send V2, and no vsock_id
