"""The house rules that no linter knows: lengths, names, and nothing of an office in the repo. Part of `make check`."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE_LINES_MAX = 450  # 300 is the aim; this is the hard stop
FUNCTION_LINES_MAX = 60  # 50 is the aim; a table or a long signature may push it a little
ROOMLESS = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "base", "misc", "v2", "handler2"})
# The guest's own tree is named by what it becomes there.
EXCUSED_FOLDERS = frozenset({"nimbus/rootfs/base"})
# Split so that this file does not hold what it looks for.
FOREIGN = re.compile(
    "|".join(
        (
            r"py" + r"pi\.org",
            r"python" + r"hosted",
            r"registry\." + r"npmjs",
            r"deb\." + r"debian\.org",
            r"crates" + r"\.io",
            r"proxy\." + r"golang",
            r"/work/" + r"(main|shared)",
        )
    )
)


def tracked(*suffixes: str) -> list[Path]:
    """Files of the repository (also new ones that git does not ignore) with one of these endings."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("house rules look at what git tracks, and this is no git checkout")
    files = (ROOT / name for name in listed if name)
    return [file for file in files if file.is_file() and not file.is_symlink() and file.name.endswith(suffixes)]


def functions(file: Path) -> Iterator[tuple[str, int, int]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_module_is_longer_than_the_hard_stop() -> None:
    sources = [file for file in tracked(".py", ".c", ".h", ".sh") if "web" not in file.relative_to(ROOT).parts]
    long = {str(f.relative_to(ROOT)): n for f in sources if (n := len(f.read_text().splitlines())) > MODULE_LINES_MAX}
    assert long == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{file.relative_to(ROOT)}:{line} {name} has {lines} lines"
        for file in tracked(".py")
        if file.is_relative_to(ROOT / "nimbus")
        for name, line, lines in functions(file)
        if lines > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_every_file_and_folder_has_a_noun_of_its_own() -> None:
    bad = []
    for file in tracked(""):
        path = file.relative_to(ROOT)
        if not any(path.is_relative_to(folder) for folder in EXCUSED_FOLDERS):
            bad += [str(path) for part in (*path.parts[:-1], path.stem) if part.lower() in ROOMLESS]
    assert bad == []


def test_every_module_of_nimbus_says_what_it_is_for() -> None:
    mute = [
        str(file.relative_to(ROOT))
        for file in tracked(".py")
        if file.is_relative_to(ROOT / "nimbus") and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert mute == []


def test_no_registry_host_and_no_path_of_a_machine_stands_in_the_repo() -> None:
    texts = tracked(
        ".py", ".c", ".h", ".sh", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".sql", ".debian", "Makefile"
    )
    named = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in texts
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert named == []
