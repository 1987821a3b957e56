"""`nimbus snapshots`: what an operator sees of templates, sound ones and wrecks, and what each state calls for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nimbus.cli.command import cli
from nimbus.cli.snapshottable import Entry, advise, cells, find_entries, pick
from nimbus.model.errors import NotFound, Refused
from nimbus.model.vm import Shape
from nimbus.storage.templates import Template, TemplateStore
from tests.unit.storage.templates import KEY, damage, publish

DIGEST = KEY.digest()
SHORT = DIGEST[:12]


def nimbus(state: Path, *words: str) -> Result:
    env = {"NIMBUS_STATE_DIR": str(state), "NIMBUS_RUNTIME_DIR": str(state / "run"), "NIMBUS_ACCEL": "tcg"}
    return CliRunner().invoke(cli, ["snapshots", *words], env=env)


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path / "templates")


def test_a_host_without_templates_says_how_to_make_one(tmp_path: Path) -> None:
    assert "boots cold; `nimbus snapshots build` makes one" in nimbus(tmp_path, "list").output
    assert json.loads(nimbus(tmp_path, "list", "--json").output) == []
    assert nimbus(tmp_path, "verify").exit_code == 0
    assert nimbus(tmp_path, "gc").output == "nothing to remove\n"
    assert not (tmp_path / "templates").exists()


def test_a_template_of_an_image_that_is_gone_is_stale_and_says_so(store: TemplateStore, tmp_path: Path) -> None:
    publish(store, tmp_path)
    shown = nimbus(tmp_path, "list").output
    assert f"{SHORT}  stale" in shown
    assert "stale: `nimbus snapshots build` makes one that fits" in shown
    (told,) = json.loads(nimbus(tmp_path, "list", "--json").output)
    assert (told["digest"], told["state"], told["key"]["host_kernel"]) == (DIGEST, "stale", "6.1.0")
    assert "no image 'base'" in told["why"][0] or "qemu" in told["why"][0]


def test_states_are_told_apart_and_the_newest_comes_first(store: TemplateStore, tmp_path: Path) -> None:
    old = publish(store, tmp_path)
    new = publish(store, tmp_path, host_kernel="6.2.0")
    wreck = publish(store, tmp_path, host_kernel="6.3.0")
    wreck.state.unlink()
    aside = publish(store, tmp_path, host_kernel="6.4.0")
    store.quarantine(aside.digest, "memory hashes to abc")

    def differences(template: Template) -> tuple[str, ...]:
        return template.key.differences(new.key)

    entries = list(find_entries(store, differences))
    assert [(entry.digest, entry.state) for entry in entries] == [
        (new.digest, "ready"),
        (old.digest, "stale"),
        (wreck.digest, "damaged"),
        (aside.digest, "quarantined"),
    ]
    assert entries[1].why == ("kernel of the host: made with 6.1.0, needed is 6.2.0",)
    assert (entries[2].why, entries[3].why) == (("state is missing",), ("memory hashes to abc",))


def test_sound_templates_verify_and_show_how_far_the_reading_came(store: TemplateStore, tmp_path: Path) -> None:
    publish(store, tmp_path)
    done = nimbus(tmp_path, "verify", DIGEST[:6])
    assert done.exit_code == 0
    assert f"{SHORT}  every byte is as it was built" in done.stdout
    assert f"{SHORT}  memory: 16 of 16 MiB" in done.stderr


def test_a_damaged_template_ends_verify_with_1_and_the_next_commands(store: TemplateStore, tmp_path: Path) -> None:
    damage(publish(store, tmp_path).memory, 3, b"!")
    done = nimbus(tmp_path, "verify")
    assert done.exit_code == 1
    assert f"{SHORT}  DAMAGED: memory hashes to" in done.stdout
    assert (
        f"`nimbus snapshots remove {SHORT}`, then "
        "`nimbus snapshots build --image base --cpus 1 --memory 256M --disk 2048M`"
    ) in done.stdout
    done = nimbus(tmp_path, "verify", "--json")
    assert (done.exit_code, json.loads(done.stdout)[0]["state"]) == (1, "damaged")


def test_a_wreck_is_damaged_too_and_can_be_removed(store: TemplateStore, tmp_path: Path) -> None:
    shutil.rmtree(publish(store, tmp_path).folder)
    (store.root / DIGEST).write_bytes(b"")
    assert nimbus(tmp_path, "verify").exit_code == 1
    assert "damaged: `nimbus snapshots remove TEMPLATE`" in nimbus(tmp_path, "list").output
    assert nimbus(tmp_path, "remove", SHORT).output == f"removed {SHORT}\n"
    assert store.digests() == ()


def test_what_was_set_aside_is_listed_and_can_be_removed(store: TemplateStore, tmp_path: Path) -> None:
    store.quarantine(publish(store, tmp_path).digest, "its clone did not run\x1b]0;owned\x07")
    shown = nimbus(tmp_path, "list").output
    assert "its clone did not run" in shown
    assert "\x1b" not in shown
    assert "machines boot cold until `nimbus snapshots build`" in shown
    assert "which had been set aside" in nimbus(tmp_path, "remove", SHORT).output
    assert store.quarantined() == ()


def test_a_template_that_was_built_again_calls_for_nothing(store: TemplateStore, tmp_path: Path) -> None:
    store.quarantine(publish(store, tmp_path).digest, "damaged")
    entries = list(find_entries(store, lambda _: ()))
    assert "machines boot cold" in advise(entries)[1]
    publish(store, tmp_path)
    assert advise(find_entries(store, lambda _: ())) == []


def test_gc_says_what_it_would_remove_before_it_does(store: TemplateStore, tmp_path: Path) -> None:
    old = publish(store, tmp_path)
    publish(store, tmp_path, host_kernel="6.2.0")
    assert f"would remove {old.digest[:12]}  base" in nimbus(tmp_path, "gc", "--keep", "1", "--dry-run").output
    assert len(store.digests()) == 2
    told = json.loads(nimbus(tmp_path, "gc", "--keep", "1", "--json").output)
    assert told == {"templates": [old.digest], "quarantined": [], "unfinished": 0, "dry_run": False}
    assert len(store.digests()) == 1


def test_gc_by_age_leaves_what_is_young(store: TemplateStore, tmp_path: Path) -> None:
    publish(store, tmp_path)
    assert nimbus(tmp_path, "gc", "--max-age", "30").output == "nothing to remove\n"
    assert f"removed {SHORT}" in nimbus(tmp_path, "gc", "--max-age", "0").output


@pytest.mark.parametrize(("prefix", "error"), [("abc", Refused), ("aaaa", Refused), ("ffff", NotFound)])
def test_digits_that_name_no_template_or_several_are_refused(prefix: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        pick(("aaaa0" + "0" * 59, "aaaa1" + "0" * 59), prefix)


def test_a_hostile_name_in_a_manifest_drives_no_terminal(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path, image="base\x1b[2J")
    assert "\x1b" not in "".join(cells(Entry(template.digest, "ready", template)))


def test_the_same_shape_is_offered_to_be_built_again(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path, shape=Shape(2, 512, 4096))
    damage(template.state, 0, b"!")
    assert "--cpus 2 --memory 512M --disk 4096M" in nimbus(tmp_path, "verify").output
