"""What a jailer refuses: the fake one, and where it is the real one, end as was recorded and with the same words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.install import install_fakes
from tests.fakes.jailer_stories import JAILER_STORIES, play_jailer
from tests.fakes.record_refusals import read_record
from tests.hosts import needs_root

pytestmark = [needs_root, pytest.mark.root]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", JAILER_STORIES)
def test_the_fake_refuses_as_the_real_one_did(tmp_path: Path, base: Path, name: str) -> None:
    fakes = install_fakes(tmp_path / "fakes")
    told = play_jailer(fakes.jailer, fakes.firecracker, base, JAILER_STORIES[name])
    assert told == read_record()["jailer"][name]


@pytest.mark.needs_firecracker
@pytest.mark.parametrize("name", JAILER_STORIES)
def test_the_real_one_still_refuses_as_was_recorded(base: Path, name: str) -> None:
    paths = [os.environ.get(variable) for variable in ("NIMBUS_JAILER_BIN", "NIMBUS_FC_BIN")]
    jailer, program = (Path(path).resolve() if path else None for path in paths)
    if jailer is None or program is None:
        pytest.skip("no jailer on this host: name it and its firecracker by NIMBUS_JAILER_BIN and NIMBUS_FC_BIN")
    assert play_jailer(jailer, program, base, JAILER_STORIES[name]) == read_record()["jailer"][name]
