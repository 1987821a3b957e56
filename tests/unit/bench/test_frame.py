"""The benches' frame: numbers as others compute them, honest verdicts, files that say all."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.frame import Bound, finish, interleave, percentile, render_table


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_percentiles_agree_with_the_standard_library(values: list[float]) -> None:
    quantiles = statistics.quantiles(values, n=100, method="inclusive")
    assert percentile(values, 50) == pytest.approx(quantiles[49])
    assert percentile(values, 95) == pytest.approx(quantiles[94])
    assert percentile(values, 100) == max(values)


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_rounds_are_interleaved_and_the_warm_up_is_thrown_away() -> None:
    calls: list[str] = []

    def measure(name: str, value: float) -> dict[str, float]:
        calls.append(name)
        return {"ms": value}

    samples = interleave({"a": lambda: measure("a", 1.0), "b": lambda: measure("b", 2.0)}, 4, warmup=1)
    assert samples == {"a.ms": [1.0] * 4, "b.ms": [2.0] * 4}
    assert [sorted(calls[i : i + 2]) for i in range(0, 10, 2)] == [["a", "b"]] * 5


def test_a_broken_bound_gives_status_1_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bounds = [Bound("overhead at p50", 0.2, 0.15), Bound("throughput", 9.0, 5.0, at_least=True)]
    assert finish("thing", {"run.ms": [1.0, 2.0]}, bounds, results=tmp_path) == 1
    written = json.loads((tmp_path / "thing.json").read_text())
    assert written["bounds"] == [
        {"name": "overhead at p50", "value": 0.2, "bound": 0.15, "holds": False},
        {"name": "throughput", "value": 9.0, "bound": 5.0, "holds": True},
    ]
    assert written["samples"] == {"run.ms": [1.0, 2.0]}
    shown = capsys.readouterr().out
    assert "BROKEN" in shown
    assert "p99" in shown


def test_bounds_that_hold_give_status_0_and_a_plot(tmp_path: Path) -> None:
    samples = {"run.ms": [3.0, 1.0, 2.0], "floor.ms": [1.0, 1.0]}
    assert finish("thing", samples, [Bound("b", 1.0, 1.0)], results=tmp_path, plotted=list(samples)) == 0
    assert "<svg" in (tmp_path / "thing.svg").read_text()


def test_tables_align_names_left_and_numbers_right() -> None:
    assert render_table(["name", "n"], [["a", "10"], ["bcdef", "9"]]).splitlines() == [
        "name    n",
        "-----  --",
        "a      10",
        "bcdef   9",
    ]
