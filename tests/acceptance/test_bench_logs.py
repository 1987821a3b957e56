"""A small run of `make bench-logs`: each part does what it measures. No rate and no time is judged here."""

from __future__ import annotations

import json
from pathlib import Path

from bench.loglines import JobOutput
from bench.logs import parse_words, take

SMALL = (
    "--rounds 1 --machines 3 --lines 300 --rows 8000 --org-rows 4000 --job-rows 1000 --pages 8 --terms 3 "
    "--jobs 4 --agents 2 --prints 2 --tails 20 --settle-s 1 --idle-s 1"
)


def test_a_small_run_measures_every_part_and_writes_each_bound(tmp_path: Path) -> None:
    take(parse_words(SMALL.split()), tmp_path)

    told = json.loads((tmp_path / "logs.json").read_text())
    assert len(told["bounds"]) == 9
    assert all(told["samples"][f"{which}.per_s"][0] > 0 for which in ("floor", "nimbus"))
    assert len(told["samples"]["page.ms"]) == len(told["samples"]["page.floor_ms"]) == 8
    assert len(told["samples"]["live.ms"]) == 8
    assert {name.split(".")[0] for name in told["samples"] if name.endswith(("rare.ms", "absent.ms"))} == {
        "token", "substring"
    }  # fmt: skip
    assert len(told["samples"]["tails.rss_kib"]) == 2


def test_the_output_that_is_measured_is_the_same_each_time_and_hardly_a_line_is_a_copy() -> None:
    lines = JobOutput(1, 2).take(5000)

    assert lines == JobOutput(1, 2).take(5000)
    assert lines != JobOutput(1, 3).take(5000)
    assert len(set(lines)) > 4500
    assert 50 < sum(map(len, lines)) / len(lines) < 120
