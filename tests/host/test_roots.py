"""Two state roots of one host never share the short name by which their kernel objects are known."""

from __future__ import annotations

import fcntl
from itertools import count
from pathlib import Path

import pytest

from nimbus.host.roots import claim_root, find_rival
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


def test_a_name_of_a_root_with_a_vm_is_refused_and_kept(tmp_path: Path) -> None:
    one, other, name = twins(tmp_path)
    claim_root(tmp_path / "run", name, one)
    (one / "ledger").mkdir()
    (one / "ledger" / "0badcafe.json").touch()
    with pytest.raises(Refused, match=f"nb{name} with {one}"):
        claim_root(tmp_path / "run", name, other)
    claim_root(tmp_path / "run", name, one)


def test_a_name_of_a_root_with_a_live_agent_is_refused_though_it_has_no_vm(tmp_path: Path) -> None:
    one, other, name = twins(tmp_path)
    claim_root(tmp_path / "run", name, one)
    with (one / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refused):
            claim_root(tmp_path / "run", name, other)
    claim_root(tmp_path / "run", name, other)


def test_an_idle_root_gives_its_name_up(tmp_path: Path) -> None:
    one, other, name = twins(tmp_path)
    claim_root(tmp_path / "run", name, one)
    (one / "ledger").mkdir()
    claim_root(tmp_path / "run", name, other)


def test_the_name_of_a_root_that_is_gone_is_free_again(tmp_path: Path) -> None:
    one, other, name = twins(tmp_path)
    claim_root(tmp_path / "run", name, one)
    one.rmdir()
    claim_root(tmp_path / "run", name, other)


def test_who_may_not_write_there_claims_nothing_and_is_not_stopped(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    claim_root(tmp_path / "file" / "run", "abc", tmp_path)


def test_a_rival_is_seen_without_taking_the_name(tmp_path: Path) -> None:
    one, other, name = twins(tmp_path)
    claim_root(tmp_path / "run", name, one)
    assert find_rival(tmp_path / "run", name, other) is None  # idle: it would give the name up
    (one / "ledger").mkdir()
    (one / "ledger" / "01234567.json").touch()
    assert find_rival(tmp_path / "run", name, other) == one
    assert find_rival(tmp_path / "run", name, one) is None
    assert (tmp_path / "run" / "roots" / name).read_text() == str(one)
