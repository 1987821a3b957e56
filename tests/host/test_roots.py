"""Two state roots of one host never share the short name by which their kernel objects are known."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from nimbus.host.roots import claim_root
from nimbus.model.errors import Refused
from nimbus.model.ids import state_root_id


def twins(folder: Path) -> tuple[Path, Path, str]:
    """Two folders whose short names are the same."""
    one = folder / "one"
    name = state_root_id(str(one))
    other = next(path for n in count() if state_root_id(str(path := folder / f"twin{n}")) == name)
    one.mkdir()
    other.mkdir()
    return one, other, name


def test_a_name_that_another_root_has_is_refused_and_kept(tmp_path: Path) -> None:
    one, other, name = twins(tmp_path)
    claim_root(tmp_path / "run", name, one)
    with pytest.raises(Refused, match=f"nb{name} with {one}"):
        claim_root(tmp_path / "run", name, other)
    claim_root(tmp_path / "run", name, one)


def test_the_name_of_a_root_that_is_gone_is_free_again(tmp_path: Path) -> None:
    one, other, name = twins(tmp_path)
    claim_root(tmp_path / "run", name, one)
    one.rmdir()
    claim_root(tmp_path / "run", name, other)


def test_who_may_not_write_there_claims_nothing_and_is_not_stopped(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    claim_root(tmp_path / "file" / "run", "abc", tmp_path)
