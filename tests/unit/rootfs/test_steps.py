"""A step runs when its inputs changed or its outputs are gone, and not otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimbus.rootfs.steps import Outputs, Step, run_step
from nimbus.storage.content import ImageStore, put_bytes

STEP = Step("kernel", 1, {"package": "abc"})


class Maker:
    """Counts how often a step really ran."""

    def __init__(self, store: ImageStore) -> None:
        self.store, self.runs = store, 0

    def __call__(self) -> Outputs:
        self.runs += 1
        return Outputs({"vmlinux": put_bytes(self.store, b"kernel")}, {"kernel_release": "6.1"})


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


@pytest.fixture
def maker(store: ImageStore) -> Maker:
    return Maker(store)


def test_a_step_with_equal_inputs_runs_once(store: ImageStore, maker: Maker) -> None:
    assert run_step(store, STEP, maker) == run_step(store, Step("kernel", 1, {"package": "abc"}), maker)
    assert maker.runs == 1


@pytest.mark.parametrize(
    "other", [Step("kernel", 1, {"package": "abd"}), Step("kernel", 2, {"package": "abc"}), Step("rootfs", 1, {})]
)
def test_another_input_recipe_or_name_runs_it_again(store: ImageStore, maker: Maker, other: Step) -> None:
    run_step(store, STEP, maker)
    run_step(store, other, maker)
    assert maker.runs == 2


def test_a_missing_output_runs_it_again(store: ImageStore, maker: Maker) -> None:
    made = run_step(store, STEP, maker)
    store.blob_path(made.blobs["vmlinux"].sha256).unlink()
    run_step(store, STEP, maker)
    assert maker.runs == 2


def test_force_runs_it_again(store: ImageStore, maker: Maker) -> None:
    run_step(store, STEP, maker)
    run_step(store, STEP, maker, force=True)
    assert maker.runs == 2


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"blobs": 1, "facts": 2}', b"\xff"])
def test_a_memo_that_cannot_be_read_is_no_memo(store: ImageStore, maker: Maker, damage: bytes) -> None:
    run_step(store, STEP, maker)
    (memo,) = (store.cache / "steps").iterdir()
    memo.write_bytes(damage)
    run_step(store, STEP, maker)
    assert maker.runs == 2
