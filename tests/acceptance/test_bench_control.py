"""A small run of `make bench-control`: each part does what it measures. No rate and no time is judged here."""

from __future__ import annotations

import json
from pathlib import Path

from bench.control import parse_words, take

SMALL = "--rounds 1 --cycles 40 --history 300 --hosts 6 --idle-s 1 --settle-s 2 --wakes 4 --passes 1"


def test_a_small_run_measures_every_part_and_writes_each_bound(tmp_path: Path) -> None:
    take(parse_words(SMALL.split()), tmp_path)

    told = json.loads((tmp_path / "control.json").read_text())
    assert len(told["bounds"]) == 8
    assert all(told["samples"][f"{which}.per_s"][0] > 0 for which in ("floor", "leases", "history", "http"))
    assert len(told["samples"]["wake.ms"]) == 4
    assert told["samples"]["granted.a_request"] == [1.0]
