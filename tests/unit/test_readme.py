"""README and docs/ against the repository: links, commands, metrics. tests/acceptance/test_readme.py runs what boots.

A command that README shows stands in PROVED_BY with the test that really runs it; a new one fails until it does.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nimbus.cli.command import COMMANDS, cli
from nimbus.model.forge import ProblemKind, explain
from nimbus.wire import guestframe, guestlink
from tests.readme import PAGES, README, ROOT, find_blocks, find_console_commands

ACCEPTANCE = "tests/acceptance/test_readme.py"
HERE = "tests/unit/test_readme.py"
CONFIGURATION = ROOT / "docs" / "configuration.md"
PROVED_BY = {
    "make demo": (ACCEPTANCE, "test_the_demo_prints_what_the_readme_shows"),
    "make demo WORKFLOW=my.yml": (
        "tests/acceptance/test_demo.py",
        "test_a_failing_workflow_exits_1_with_its_output_shown",
    ),
    "make build": (ACCEPTANCE, "test_the_demo_prints_what_the_readme_shows"),
    "make up": ("tests/acceptance/test_up.py", "test_all_is_reachable_and_ctrl_c_leaves_nothing_running"),
    "make check test": (HERE, "test_ci_runs_what_the_readme_calls_check_and_test"),
    "make help": (HERE, "test_a_cheap_command_of_the_readme_works"),
    ".venv/bin/nimbus --help": (HERE, "test_a_cheap_command_of_the_readme_works"),
    ".venv/bin/nimbus run --help": (HERE, "test_a_cheap_command_of_the_readme_works"),
    ".venv/bin/nimbus run -- uname -a": (ACCEPTANCE, "test_the_first_command_of_the_readme_works"),
}
# What a make target comes down to, which is what the tests run: they must not set up the machine that they run on.
TARGETS = {
    "make demo": ".venv/bin/nimbus demo",
    "make demo WORKFLOW=my.yml": ".venv/bin/nimbus demo --workflow 'my.yml'",
    "make build": ".venv/bin/nimbus assets build",
    "make up": "exec .venv/bin/nimbus up --sim",
}
CHEAP = [command for command, (_, test) in PROVED_BY.items() if test == "test_a_cheap_command_of_the_readme_works"]


def find_shown(page: Path) -> set[str]:
    """Commands in the indented blocks and in the inline code of a page."""
    text = page.read_text()
    inline = re.findall(r"`((?:make|\.venv/bin/nimbus) [^`]+)`", text)
    lines = (line.strip() for block in find_blocks(text) for line in block.splitlines())
    return {*inline, *filter(None, lines)}


def list_tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    assert find_shown(README) == set(PROVED_BY)


@pytest.mark.parametrize(("command", "proof"), PROVED_BY.items())
def test_the_test_that_is_said_to_run_a_command_exists(command: str, proof: tuple[str, str]) -> None:
    file, name = proof
    assert name in list_tests(file), f"{command} is run by no test"


@pytest.mark.parametrize(("command", "comes_to"), TARGETS.items())
def test_a_make_target_of_the_readme_comes_down_to_the_command_that_is_tested(command: str, comes_to: str) -> None:
    dry = [*shlex.split(command), "--dry-run", "--no-print-directory"]
    told = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert comes_to in [line.strip() for line in told.splitlines()]


def test_the_demo_builds_the_image_by_the_command_behind_make_build() -> None:
    assert '"assets", "build"' in (ROOT / "nimbus" / "cli" / "demo.py").read_text()


@pytest.mark.parametrize("command", CHEAP)
def test_a_cheap_command_of_the_readme_works(command: str) -> None:
    words = shlex.split(command)
    argv = words if words[0] == "make" else [sys.executable, "-m", "nimbus", *words[1:]]
    told = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "nimbus" in told.lower()


def test_ci_runs_what_the_readme_calls_check_and_test() -> None:
    assert "exec make check test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_console_block_of_the_readme_shows_commands_with_output() -> None:
    assert [command.line.split()[0] for command in find_console_commands()] == [".venv/bin/nimbus"] * 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_something(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:nimbus|native|tests|docs|deploy)/[\w./-]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {(README.parent / target).resolve() for target in re.findall(r"\]\(([^)\s#]+)", README.read_text())}
    assert [page.name for page in PAGES if page.parent.name == "docs" and page not in linked] == []


@pytest.mark.parametrize(
    "line",
    sorted(
        {
            line.strip()
            for page in PAGES
            for block in find_blocks(page.read_text())
            for line in block.splitlines()
            if line.strip().startswith("nimbus ")
        }
        | {code for page in PAGES for code in re.findall(r"`(nimbus [^`|]+)`", page.read_text())}
    ),
)
def test_every_nimbus_command_of_the_pages_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.split(" -- ", maxsplit=1)[0])[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert [word for word in words if word.startswith("-") and word not in options] == []


def test_the_changelog_tells_of_every_command() -> None:
    told = (ROOT / "CHANGELOG.md").read_text()
    assert [name for name in COMMANDS if f"`nimbus {name}" not in told] == []


def test_operations_names_every_metric_and_no_other() -> None:
    sources = [file.read_text() for file in (ROOT / "nimbus").glob("**/*metrics.py")]
    exported = {name for text in sources for name in re.findall(r'"(nimbus_[a-z_]+)"', text)}
    named = set(re.findall(r"`(nimbus_[a-z_]+)`", (ROOT / "docs" / "operations.md").read_text()))
    assert named == exported


def test_the_page_of_github_says_who_acts_on_each_kind_of_refusal() -> None:
    page = (ROOT / "docs" / "github.md").read_text()
    section = page.partition("## Why a job waits")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", section, flags=re.MULTILINE))
    assert set(told) == {kind.value for kind in ProblemKind}
    words = {kind: set(re.findall(r"[\w'-]+", explain(kind, "it"))) for kind in ProblemKind}
    assert [kind for kind in ProblemKind if not set(re.findall(r"[\w'-]+", told[kind])) - {"on"} <= words[kind]] == []


def test_the_defaults_on_the_page_of_github_are_the_settings() -> None:
    shown = re.findall(r"`(NIMBUS_[A-Z_]+)` \(?(\d[\d.]*)", (ROOT / "docs" / "github.md").read_text())
    table = dict(re.findall(r"^\| `(NIMBUS_[A-Z_]+)` \|.*\| `([^`]+)` \|$", CONFIGURATION.read_text(), re.MULTILINE))
    assert len(shown) > 10
    assert [(name, value) for name, value in shown if float(table[name]) != float(value)] == []


def test_the_page_of_the_guest_link_has_every_number_of_the_code() -> None:
    page = (ROOT / "docs" / "guest-link.md").read_text()
    types = {(int(number), name) for number, name in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", page, flags=re.MULTILINE)}
    assert types == {(kind.value, kind.name) for kind in guestlink.Kind}
    for values in (guestlink.Stream, guestlink.GuestState):
        assert ", ".join(f"{value} {value.name.lower()}" for value in values) in page
    assert f"at most {guestframe.MAX_PAYLOAD_BYTES}" in page
    assert f"1 to {guestlink.MAX_OUTPUT_BYTES} bytes" in page
