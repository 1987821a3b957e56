"""What of GitHub's workflow syntax the rehearsal takes, and how it refuses the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

import nimbus.sim
from nimbus.model.errors import Refused
from nimbus.sim.workflow import parse_workflow

JOB = "jobs:\n  a:\n    runs-on: nimbus\n    steps:\n"


def test_the_bundled_workflow_is_one_that_the_rehearsal_understands() -> None:
    text = (Path(nimbus.sim.__file__).parent / "workflows" / "hello.yml").read_text()
    workflow = parse_workflow(text)
    assert [job.labels for job in workflow.jobs] == [("nimbus",)]
    assert workflow.jobs[0].steps[-1].condition == "always"


def test_names_labels_conditions_and_the_environment_are_read() -> None:
    text = """
name: CI
on: {push: {branches: [main]}}
env: {A: 1, B: true, C: top}
jobs:
  build:
    name: Build it
    runs-on: [nimbus, X64]
    environment: production
    env: {C: job}
    steps:
      - run: make
      - {name: Tidy, run: make clean, if: "${{ always() }}", env: {C: step}}
"""
    job = parse_workflow(text).jobs[0]
    assert (job.key, job.name, job.labels, job.environment) == ("build", "Build it", ("nimbus", "X64"), "production")
    assert [(s.name, s.condition, s.env["C"]) for s in job.steps] == [
        ("Run make", "success", "job"),
        ("Tidy", "always", "step"),
    ]
    assert job.steps[0].env == {"A": "1", "B": "true", "C": "job"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "mapping"),
        ("[1, 2]", "mapping"),
        ("jobs: {}", "jobs"),
        ("jobs: {a: {steps: [{run: x}]}}", "runs-on"),
        ("jobs: {a: {runs-on: nimbus}}", "steps"),
        ("jobs: {a: {runs-on: nimbus, steps: []}}", "steps"),
        ("jobs: {'a b': {runs-on: nimbus, steps: [{run: x}]}}", "job id"),
        ("jobs: {a: {runs-on: nimbus, strategy: {}, steps: [{run: x}]}}", "strategy"),
        (JOB + "      - uses: actions/checkout@v4", "uses"),
        (JOB + "      - run: ''", "run"),
        (JOB + "      - {run: x, shell: fish}", "shell"),
        (JOB + "      - run: echo ${{ secrets.TOKEN }}", "expressions"),
        (JOB + "      - {run: x, if: 'runner.os == 1'}", "if"),
        (JOB + "      - {run: x, env: {'A=B': c}}", "A=B"),
        (JOB + "      - {run: x, env: {'A;rm -rf /': c}}", "environment variable"),
        (JOB + '      - {run: x, name: "two\\nlines"}', "line"),
        (JOB + '      - {run: "nul \\0"}', "NUL"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: [", "line 1"),
        ("a: 2026-99-99", "YAML"),
        ("[" * 5000, "YAML"),
        ("x" * 300_000, "KiB"),
        ("!!python/object/apply:os.system [id]", "YAML"),
    ],
)
def test_what_is_not_rehearsed_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(Refused, match=word):
        parse_workflow(text)
