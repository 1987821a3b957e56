"""What the controllers' guest found, read from the results that it left. Called by run.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def judge(results: Path) -> tuple[bool, list[str]]:
    """Whether all is well, and lines that say so: the counts, each reason for a skip, each failure."""
    status, junit = results / "status", results / "junit.xml"
    if not status.is_file() or not junit.is_file():
        return False, ["the guest left no results: see build/controllers/console.log"]
    report = ElementTree.parse(junit)  # noqa: S314 - as above
    outcomes: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    failures = []
    for case in report.iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        outcome = next((child for child in case if child.tag in {"failure", "error", "skipped"}), None)
        outcomes["passed" if outcome is None else outcome.tag] += 1
        if outcome is not None and outcome.tag == "skipped":
            skips[outcome.get("message", "")] += 1
        elif outcome is not None:
            failures.append(f"{outcome.tag}: {name}")
    bad = outcomes["failure"] + outcomes["error"]
    lines = [*failures, *(f"skipped {number}: {reason}" for reason, number in skips.items())]
    lines.append(f"{outcomes['passed']} passed, {bad} failed, {outcomes['skipped']} skipped in the guest")
    code = status.read_text().strip()
    if code != "0" and bad == 0:
        lines.append(f"pytest ended with status {code}: see build/controllers/console.log")
    return code == "0" and bad == 0 and outcomes["passed"] > 0, lines
