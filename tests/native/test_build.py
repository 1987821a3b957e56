"""The package's build: what a wheel and an sdist hold, and the C tests under sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALL = "import sys; sys.path.insert(0, 'native'); import backend; backend.{}(sys.argv[1])"


def build(hook: str, target: Path) -> Path:
    """Calls the backend as pip does, in a process of its own; the one file that it made."""
    subprocess.run([sys.executable, "-c", CALL.format(hook), target], cwd=ROOT, check=True, capture_output=True)
    (made,) = target.iterdir()
    return made


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", "-C", "native", f"PYTHON={sys.executable}", *words],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )


def test_a_wheel_is_bound_to_its_platform_and_holds_the_binaries(tmp_path: Path) -> None:
    wheel = build("build_wheel", tmp_path)
    assert wheel.name.split("-")[2:4] == ["cp311", "abi3"]
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as held:
        modes = {info.filename: info.external_attr >> 16 for info in held.infolist()}
    assert "nimbus/host/_native.abi3.so" in modes
    assert modes["nimbus/host/bin/nimbus-keeper"] & 0o111 == 0o111
    assert modes["nimbus/rootfs/bin/nimbus-init"] & 0o111 == 0o111
    assert "nimbus/host/bin/nimbus-probe.elf" in modes
    assert modes["nimbus/host/bin/nimbus-kvm"] & 0o111 == 0o111
    assert not [name for name in modes if name.startswith(("native/", "tests/"))]


def test_an_sdist_holds_the_sources_and_no_binary(tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", tmp_path)) as held:
        names = {member.name.partition("/")[2] for member in held if member.isfile()}
    assert {
        "native/Makefile",
        "native/host/nimbus_host.h",
        "native/host/keeper/watch.c",
        "native/probe/probe.S",
    } <= names
    assert "pyproject.toml" in names
    assert not [name for name in names if name.endswith((".so", ".o")) or name.startswith("nimbus/host/bin/")]
    assert not [name for name in names if name.startswith(("nimbus/rootfs/bin/", "native/build/"))]


def test_a_second_build_compiles_nothing() -> None:
    assert make("all").returncode == 0
    assert make("--question", "all").returncode == 0


def test_the_keepers_parsers_pass_under_sanitizers() -> None:
    ran = make("sanitize")
    assert (ran.returncode, ran.stdout) == (0, "keeper: 0 failed\n"), ran.stderr


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang: libFuzzer is its part")
def test_two_seconds_of_fuzzing_find_nothing() -> None:
    ran = make("fuzz", "FUZZ_S=2")
    assert ran.returncode == 0, ran.stderr[-4000:]


def test_the_extension_keeps_to_the_limited_api_and_exports_one_symbol() -> None:
    ran = subprocess.run(
        ["nm", "-D", "--defined-only", ROOT / "nimbus/host/_native.abi3.so"], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in ran.stdout.splitlines()] == ["PyInit__native"]


def test_the_keeper_needs_no_library() -> None:
    ran = subprocess.run(
        ["readelf", "-d", ROOT / "nimbus/host/bin/nimbus-keeper"], capture_output=True, text=True, check=True
    )
    assert "NEEDED" not in ran.stdout
    assert "BIND_NOW" in ran.stdout or "NOW" in ran.stdout
    assert os.access(ROOT / "nimbus/host/bin/nimbus-keeper", os.X_OK)


def test_every_option_of_the_keeper_is_documented_and_no_other() -> None:
    documented = set(
        re.findall(r"^\| `(--[a-z-]+)|`, `(--[a-z-]+)", (ROOT / "docs/keeper.md").read_text(), re.MULTILINE)
    )
    source = (ROOT / "native/host/keeper/options.c").read_text()
    parsed = set(re.findall(r'strcmp\((?:name|argv\[\*at\]), "(--[a-z-]+)"\)', source))
    assert {first or second for first, second in documented} == parsed
