"""One agent for each state root, whatever its disk takes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from nimbus.host_agent.instance import count_start, single_instance


def test_each_start_has_a_higher_number_than_the_one_before(tmp_path: Path) -> None:
    numbers = [count_start(tmp_path / "starts") for _ in range(3)]
    assert numbers == sorted(set(numbers))


def test_a_disk_that_takes_no_file_does_not_keep_an_agent_from_its_machines(tmp_path: Path) -> None:
    before = int(time.time())
    (tmp_path / "starts").mkdir()  # nothing can be put in its place
    assert count_start(tmp_path / "starts") >= before


def test_the_lock_names_its_holder_alone(tmp_path: Path) -> None:
    (tmp_path / "agent.lock").write_text("999999999999\n")
    with single_instance(tmp_path):
        assert (tmp_path / "agent.lock").read_text() == f"{os.getpid()}\n"
