"""What `make test-controllers` decides without a guest: what goes in, how it is booted, and what its results mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nimbus.storage.ext4 import make_ext4
from tests.controllers import run
from tests.controllers.boot import Boot, open_console, plan_command
from tests.controllers.disks import read_disk, write_disk
from tests.controllers.root import LEFT_OUT, ROOT, filter_requirements
from tests.controllers.verdict import judge

PASSED = '<testcase classname="tests.host.test_a" name="test_good"/>'
FAILED = '<testcase classname="tests.host.test_a" name="test_bad"><failure message="no">text</failure></testcase>'
SKIPPED = '<testcase classname="tests.host.test_a" name="test_later"><skipped message="no disk"/></testcase>'


def leave(folder: Path, status: str, *cases: str) -> Path:
    """A guest's results."""
    (folder / "status").write_text(f"{status}\n")
    (folder / "junit.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return folder


def test_results_without_a_failure_are_good_and_every_reason_to_skip_is_told(tmp_path: Path) -> None:
    assert judge(leave(tmp_path, "0", PASSED, SKIPPED, SKIPPED)) == (
        True,
        ["skipped 2: no disk", "1 passed, 0 failed, 2 skipped in the guest"],
    )


def test_a_failed_test_is_named(tmp_path: Path) -> None:
    good, lines = judge(leave(tmp_path, "1", PASSED, FAILED))
    assert not good
    assert "failure: tests/host/test_a.py::test_bad" in lines


@pytest.mark.parametrize(("status", "cases"), [("0", ()), ("5", ()), ("3", (PASSED,)), ("0", (SKIPPED,))])
def test_a_guest_that_ran_no_test_to_its_end_shows_nothing(tmp_path: Path, status: str, cases: tuple[str, ...]) -> None:
    assert judge(leave(tmp_path, status, *cases))[0] is False


def test_a_guest_that_died_leaves_no_verdict(tmp_path: Path) -> None:
    good, lines = judge(tmp_path)
    assert not good
    assert "no results" in lines[0]


def test_the_pinned_requirements_go_in_with_their_hashes_but_for_what_is_left_out() -> None:
    pinned = (ROOT / "requirements-dev.txt").read_text()
    kept = filter_requirements(pinned)
    names = {line.split("==")[0] for line in kept.splitlines() if "==" in line and not line.startswith(" ")}
    assert {"trio", "pytest", "pyroute2", "structlog"} <= names
    assert names & LEFT_OUT == set()
    assert {line.split("==")[0] for line in pinned.splitlines() if line[:1].isalnum()} >= LEFT_OUT
    assert "--hash=sha256:" in kept


def test_tests_that_are_left_out_in_the_guest_are_there() -> None:
    for name in run.LEFT_OUT:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text()


def test_disks_that_are_shared_are_written_to_in_a_copy_only(tmp_path: Path) -> None:
    boot = Boot(
        kernel=tmp_path / "k",
        initramfs=tmp_path / "i",
        disks={"root": tmp_path / "r"},
        kept={"results": tmp_path / "o"},
        accel="tcg",
        console=tmp_path / "c",
        limit_s=1,
    )
    words = plan_command(boot, tsc_khz=2_000_000)
    assert any(f"file={tmp_path}/r," in word and word.endswith("snapshot=on") for word in words)
    assert any(f"file={tmp_path}/o," in word and word.endswith("snapshot=off") for word in words)
    assert any("cgroup_no_v1=all" in word and "tsc_early_khz=2000000" in word for word in words)


def test_people_see_what_follows_the_mark_and_the_log_holds_all() -> None:
    log, shown = bytearray(), bytearray()
    take = open_console(log.extend, shown.extend)
    for piece in (b"SeaBIOS\n== gu", b"est: Linux\n", b"1 passed\n"):
        take(piece)
    assert bytes(log) == b"SeaBIOS\n== guest: Linux\n1 passed\n"
    assert bytes(shown) == b"== guest: Linux\n1 passed\n"


def test_a_folder_becomes_a_disk_and_what_a_guest_left_on_one_is_read_back(tmp_path: Path) -> None:
    tree, image, back = tmp_path / "tree", tmp_path / "image", tmp_path / "back"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").write_bytes(os.urandom(100_000))
    back.mkdir()
    write_disk(image, tree, "checkout")
    read_disk(image, back)
    assert (back / "deep" / "file").read_bytes() == (tree / "deep" / "file").read_bytes()


def test_a_results_disk_that_nobody_wrote_to_is_empty(tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    image.touch()
    back.mkdir()
    make_ext4(image, run.RESULTS_BYTES, uuid=run.RESULTS_UUID, label="results")
    read_disk(image, back)
    assert [path.name for path in back.iterdir() if path.name != "lost+found"] == []


def test_the_checkout_that_goes_in_holds_all_that_the_tests_name(tmp_path: Path) -> None:
    image, tree = tmp_path / "image", tmp_path / "tree"
    run.write_checkout(image, tree, 0, ["-k", "a b"])
    assert all((tree / name).is_dir() for name in run.TESTS)
    assert list(tree.rglob("__pycache__")) == []
    assert (tree / "pytest.arguments").read_text().endswith("-k 'a b'")
    assert image.stat().st_size < 400 << 20
