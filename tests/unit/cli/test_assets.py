"""`nimbus assets`: what a person sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nimbus.cli.assets import assets
from nimbus.model.errors import NotFound
from nimbus.storage.content import ImageStore, put_bytes
from nimbus.storage.images import ROLES, Manifest, Package, Provenance, put_manifest
from tests.unit.rootfs.releaseserver import open_site
from tests.unit.rootfs.releaseshop import Shop

ROOT = Path(__file__).parents[3]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIMBUS_STATE_DIR", str(tmp_path))
    return tmp_path


def publish(state: Path) -> None:
    store = ImageStore(state / "images")
    files = {role: put_bytes(store, role.encode()) for role in ROLES}
    origin = Provenance("f" * 64, (Package("linux", "6.1-1", "a" * 64),))
    put_manifest(store, Manifest("base", "2026-11-21T00:00:00+00:00", "6.1.0-1-cloud-amd64", files, origin))


def ask(*arguments: str) -> str:
    result = CliRunner().invoke(assets, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_help_teaches_by_examples() -> None:
    text = ask("--help")
    assert "nimbus assets build --force" in text
    assert "NIMBUS_STATE_DIR" in text


def test_a_host_without_images_says_how_to_make_one(state: Path) -> None:
    assert f"no image in {state}/images; `nimbus assets build` makes one" in ask("list")
    assert json.loads(ask("list", "--json")) == []


def test_images_are_listed_with_their_kernel(state: Path) -> None:
    publish(state)
    assert "base                 6.1.0-1-cloud-amd64" in ask("list")
    (described,) = json.loads(ask("list", "--json"))
    assert set(described["files"]) == set(ROLES)


def test_a_sound_image_verifies(state: Path) -> None:
    publish(state)
    assert "every byte is as its manifest says" in ask("verify", "base")
    assert json.loads(ask("verify", "base", "--json"))["verified"] is True


def test_an_unknown_image_is_the_callers_mistake(state: Path) -> None:
    publish(state)
    with pytest.raises(NotFound, match="there: base"):
        ask("verify", "other")


def test_alone_the_module_ends_an_error_with_one_line_and_its_exit_code(state: Path) -> None:
    argv = (sys.executable, "-m", "nimbus.cli.assets", "verify", "other")
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nimbus: no image 'other'")
    assert done.stderr.count("\n") == 1


def test_a_fetch_says_where_the_programs_are_and_which_variables_name_them(state: Path, tmp_path: Path) -> None:
    with open_site() as site:
        shop = Shop(site, tmp_path, b"")
        place = shop.order(shop.programs()).place
        folder = tmp_path / "releases" / "firecracker-v1"
        told = ask("fetch", "--from", place)
        assert f"firecracker v1: installed in {folder}" in told
        assert f"NIMBUS_JAILER_BIN={folder}/jailer" in told
        (described,) = json.loads(ask("fetch", "--from", place, "--json"))["programs"]
    assert (described["folder"], described["changed"]) == (str(folder), False)


def test_a_fetch_without_a_list_names_the_option() -> None:
    result = CliRunner().invoke(assets, ["fetch"])
    assert result.exit_code == 2
    assert "--from" in result.output
