"""`nimbus snapshots` with a guest that really boots: what is kept of it, what is not, and what ends a build."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nimbus.storage.templates import FILES, TemplateStore
from tests.guests import count_boots
from tests.vm.terminal import LIMIT_S, NIMBUS, Terminal

pytestmark = [pytest.mark.root, pytest.mark.vm]

SECRETS = {
    "NIMBUS_CONTROL_PLANE_TOKEN": "ct-0f6e2b9d7a514c83",
    "NIMBUS_AGENT_TOKEN_SECRET": "at-c1d8e05b44f24a96",
    "NIMBUS_CACHE_SHARED_SECRET": "cs-77aa1f3e9b604d02",
    "AWS_SECRET_ACCESS_KEY": "aw-5be19c3d82f04e7f",
    "GITHUB_TOKEN": "gh-e94d60b17c2f4a58",
}


def store_of(terminal: Terminal) -> TemplateStore:
    return TemplateStore(terminal.territory.state_root / "templates")


def build(terminal: Terminal, *words: str, env: dict[str, str] | None = None) -> dict[str, object]:
    done = terminal.call("snapshots", "build", "--json", *words, env=env or {})
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, object] = json.loads(done.stdout)
    return told | {"said": done.stderr.decode()}


def holds(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return content.find(text) >= 0


def rot(path: Path) -> None:
    """As a failing disk would: nothing but the bytes is another."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, b"rot", 100 << 20)
    finally:
        os.close(fd)


@contextmanager
def start_build(terminal: Terminal) -> Iterator[subprocess.Popen[str]]:
    """A build whose guest boots just now."""
    env = {**os.environ, "NIMBUS_STATE_DIR": str(terminal.territory.state_root)}
    with subprocess.Popen([*NIMBUS, "snapshots", "build"], env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert next((line for line in process.stderr if "booting" in line), "")
            yield process
        finally:
            process.kill()
    count_boots("qemu", 1)


def test_a_template_is_built_once_listed_as_ready_verified_and_removed(terminal: Terminal) -> None:
    built = build(terminal)
    count_boots("qemu", 1)
    assert (built["state"], "booting" in str(built["said"])) == ("ready", True)
    (listed,) = json.loads(terminal.call("snapshots", "list", "--json").stdout)
    assert (listed["digest"], listed["state"], listed["why"]) == (built["digest"], "ready", [])
    assert 0 < listed["touched_bytes"] < listed["files"]["memory"]["bytes"] == 256 << 20
    again = build(terminal)
    assert (again["digest"], "booting" in str(again["said"])) == (built["digest"], False)
    assert b"every byte is as it was built" in terminal.call("snapshots", "verify").stdout
    assert terminal.call("snapshots", "remove", str(built["digest"])[:8]).returncode == 0
    assert json.loads(terminal.call("snapshots", "list", "--json").stdout) == []


def test_another_shape_is_another_template(terminal: Terminal) -> None:
    one = build(terminal)
    other = build(terminal, "--memory", "192M", "--cpus", "2", "--disk", "64M")
    count_boots("qemu", 2)
    assert one["digest"] != other["digest"]
    assert len(store_of(terminal).list_templates()) == 2
    assert terminal.call("snapshots", "gc", "--keep", "1").stdout == b"nothing to remove\n"


def test_no_secret_of_who_builds_it_is_in_a_template(terminal: Terminal) -> None:
    build(terminal, env=SECRETS)
    count_boots("qemu", 1)
    (template,) = store_of(terminal).list_templates()
    assert holds(template.memory, b"nimbus-init")  # the memory can be searched as it is
    found = [
        (name, variable)
        for name in (*FILES, "manifest.json")
        for variable, secret in SECRETS.items()
        if holds(template.folder / name, secret.encode())
    ]
    assert found == []


def test_a_damaged_template_is_told_set_aside_by_the_next_build_and_built_again(terminal: Terminal) -> None:
    first = build(terminal)
    (template,) = store_of(terminal).list_templates()
    rot(template.memory)
    verified = terminal.call("snapshots", "verify")
    assert (verified.returncode, b"DAMAGED: memory hashes to" in verified.stdout) == (1, True)
    again = build(terminal)
    count_boots("qemu", 2)
    assert again["digest"] == first["digest"]
    states = [row["state"] for row in json.loads(terminal.call("snapshots", "list", "--json").stdout)]
    assert states == ["ready", "quarantined"]
    assert terminal.call("snapshots", "verify").returncode == 0


def truncate(path: Path) -> None:
    os.truncate(path, 1 << 20)


@pytest.mark.parametrize("harm", [rot, truncate])
def test_a_machine_of_a_damaged_template_boots_cold_and_the_template_is_set_aside(
    terminal: Terminal, harm: Callable[[Path], None]
) -> None:
    build(terminal)
    count_boots("qemu", 1)
    (template,) = store_of(terminal).list_templates()
    restored = json.loads(terminal.run("--json", "--", "true").stdout)
    harm(template.memory)
    cold = json.loads(terminal.run("--json", "--", "true").stdout)
    assert [run["status"] for run in (restored, cold)] == [0, 0]
    assert ["load" in run["phases_ms"] for run in (restored, cold)] == [True, False]
    assert [row["state"] for row in json.loads(terminal.call("snapshots", "list", "--json").stdout)] == ["quarantined"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_asked_to_end_leaves_no_machine_and_no_template(terminal: Terminal, signum: int) -> None:
    with start_build(terminal) as process:
        process.send_signal(signum)
        assert process.wait(LIMIT_S) == 128 + signum
    assert not terminal.has_record()
    assert store_of(terminal).digests() == ()


def test_a_killed_builds_machine_dies_with_it_and_the_broom_takes_the_rest(terminal: Terminal) -> None:
    with start_build(terminal) as process:
        process.kill()
        process.wait(LIMIT_S)
    assert terminal.call("vms", "purge", "--all").returncode == 0
    assert not terminal.has_record()
    assert store_of(terminal).digests() == ()
