"""A template is whole, read-only and what it was when it was published, or it is found out and set aside."""

from __future__ import annotations

import json
import mmap
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimbus.model.errors import HostFault, Refused
from nimbus.model.vm import Shape
from nimbus.storage.templates import FILES, DamagedTemplate, Template, TemplateStore
from tests.unit.storage.templates import KEY, MEMORY_MIB, MIB, damage, make_files, publish

BUILDER = """
import resource, signal, sys
from pathlib import Path
from nimbus.storage.templates import TemplateStore
from tests.unit.storage.templates import KEY, make_files
files = make_files(Path(sys.argv[2]))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))
TemplateStore(Path(sys.argv[1])).publish(KEY, files)
"""
WAITER = """
import sys
from pathlib import Path
from nimbus.storage.templates import TemplateStore
with TemplateStore(Path(sys.argv[1])).staged_folder() as folder:
    (folder / "memory").write_bytes(b"half")
    print("building", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path / "templates")


def test_a_published_template_is_found_by_its_keys_digest(store: TemplateStore, tmp_path: Path) -> None:
    published = publish(store, tmp_path)
    found = store.find(KEY.digest())
    assert found == published
    assert found is not None
    assert (found.key, found.shape) == (KEY, Shape())
    for path, source in zip(
        (found.memory, found.state, found.overlay), vars(make_files(tmp_path / "vm")).values(), strict=True
    ):
        assert path.read_bytes() == source.read_bytes()


def test_where_nothing_was_published_nothing_is_found_and_no_folder_is_made(store: TemplateStore) -> None:
    assert store.find(KEY.digest()) is None
    assert (store.digests(), store.list_templates(), store.quarantined()) == ((), (), ())
    assert store.sweep() == 0
    assert not store.root.exists()


@pytest.mark.parametrize("digest", ["", ".", "..", "staging", "quarantine", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_what_is_no_digest_is_refused(store: TemplateStore, digest: str) -> None:
    with pytest.raises(Refused, match="no digest"):
        store.find(digest)


def test_holes_and_zeros_take_no_room_and_what_was_touched_is_counted(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path)
    found = template.memory.stat()
    assert found.st_size == MEMORY_MIB * MIB
    assert found.st_blocks * 512 < MIB
    assert template.touched_bytes == 2 * 4096
    assert template.overlay.stat().st_blocks * 512 < MIB


def test_nobody_may_write_a_template_and_only_its_owner_may_look_for_one(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in template.folder.iterdir()}
    assert modes == dict.fromkeys((*FILES, "manifest.json"), 0o444)
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert template.memory.stat().st_uid == os.geteuid()


def test_a_builder_that_still_writes_its_files_changes_no_template(store: TemplateStore, tmp_path: Path) -> None:
    files = make_files(tmp_path / "vm")
    with files.memory.open("r+b") as still_open:
        template = store.publish(KEY, files)
        still_open.write(b"late")
    store.verify(template)


def test_a_link_in_the_place_of_a_file_is_not_followed(store: TemplateStore, tmp_path: Path) -> None:
    files = make_files(tmp_path / "vm")
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's own")
    files.state.unlink()
    files.state.symlink_to(secret)
    with pytest.raises(HostFault, match="cannot keep"):
        store.publish(KEY, files)
    assert store.digests() == ()


def test_a_pipe_in_the_place_of_a_file_hangs_nobody(store: TemplateStore, tmp_path: Path) -> None:
    files = make_files(tmp_path / "vm")
    files.state.unlink()
    os.mkfifo(files.state)
    with pytest.raises(HostFault, match="is no file"):
        store.publish(KEY, files)
    assert (store.digests(), list(store.staging.iterdir())) == ((), [])


def test_a_disk_that_takes_no_more_leaves_no_half_of_a_template(store: TemplateStore, tmp_path: Path) -> None:
    files = make_files(tmp_path / "vm")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, before[1]))  # python ignores SIGXFSZ: a write fails instead
    try:
        with pytest.raises(HostFault, match="File too large"):
            store.publish(KEY, files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (store.digests(), list(store.staging.iterdir())) == ((), [])


def test_building_again_takes_the_place_of_the_older_one(store: TemplateStore, tmp_path: Path) -> None:
    first = publish(store, tmp_path)
    second = publish(store, tmp_path)
    assert second.generation != first.generation
    assert store.list_templates() == (second,)
    assert list(store.staging.iterdir()) == []


def test_the_newest_is_listed_first(store: TemplateStore, tmp_path: Path) -> None:
    first = publish(store, tmp_path)
    second = publish(store, tmp_path, shape=Shape(cpus=2))
    assert store.list_templates() == (second, first)


def flip(template: Template) -> None:
    damage(template.memory, 3, b"!")


def flip_in_a_hole(template: Template) -> None:
    damage(template.memory, 12 * MIB, b"!")


def flip_in_the_disk(template: Template) -> None:
    damage(template.overlay, 0, b"E")


@pytest.mark.parametrize("harm", [flip, flip_in_a_hole, flip_in_the_disk])
def test_a_flipped_byte_is_found_by_reading(
    store: TemplateStore, tmp_path: Path, harm: Callable[[Template], None]
) -> None:
    template = publish(store, tmp_path)
    store.verify(template)
    harm(template)
    assert store.find(template.digest) == template
    with pytest.raises(DamagedTemplate, match="hashes to"):
        store.verify(template)


def truncate(template: Template) -> None:
    os.truncate(template.memory, MIB)


def lose(template: Template) -> None:
    template.state.unlink()


def plant_a_link(template: Template) -> None:
    os.rename(template.memory, template.folder.parent / "elsewhere")
    template.memory.symlink_to(template.folder.parent / "elsewhere")


def make_writable(template: Template) -> None:
    template.memory.chmod(0o644)


def lose_the_manifest(template: Template) -> None:
    (template.folder / "manifest.json").unlink()


def tear_the_manifest(template: Template) -> None:
    os.truncate(template.folder / "manifest.json", 100)


def plant_a_pipe(template: Template) -> None:
    (template.folder / "manifest.json").unlink()
    os.mkfifo(template.folder / "manifest.json")


def leave_a_file(template: Template) -> None:
    shutil.rmtree(template.folder)
    template.folder.write_bytes(b"")


def leave_a_link(template: Template) -> None:
    aside = template.folder.with_name("elsewhere")
    template.folder.rename(aside)
    template.folder.symlink_to(aside)


WRECKS: dict[Callable[[Template], None], str] = {
    truncate: "memory has 1048576 bytes instead of 16777216",
    lose: "state is missing",
    plant_a_link: "memory is no file",
    make_writable: "memory could be written",
    lose_the_manifest: "manifest cannot be read",
    tear_the_manifest: "manifest cannot be understood",
    plant_a_pipe: "manifest cannot be understood",
    leave_a_file: "its folder is none",
    leave_a_link: "its folder is none",
}


@pytest.mark.parametrize("harm", WRECKS)
def test_a_wreck_is_found_by_looking_and_can_be_set_aside(
    store: TemplateStore, tmp_path: Path, harm: Callable[[Template], None]
) -> None:
    template = publish(store, tmp_path)
    harm(template)
    with pytest.raises(DamagedTemplate, match=WRECKS[harm]):
        store.find(template.digest)
    assert store.list_templates() == ()
    assert store.digests() == (template.digest,)
    assert store.quarantine(template.digest, "a test")
    assert store.find(template.digest) is None
    assert [one.digest for one in store.quarantined()] == [template.digest]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a file to another user")
def test_a_file_that_was_given_to_a_vm_is_found_by_looking(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path)
    os.chown(template.memory, 200_000, 200_000)
    with pytest.raises(DamagedTemplate, match="could be written by uid 200000"):
        store.find(template.digest)


def set_version(document: dict[str, Any]) -> None:
    document["version"] = 2


def change_the_key(document: dict[str, Any]) -> None:
    document["key"]["host_kernel"] = "6.2.0"


def point_outside(document: dict[str, Any]) -> None:
    document["files"]["memory"]["digest"] = "../../etc/shadow"


def drop_a_file(document: dict[str, Any]) -> None:
    del document["files"]["overlay.img"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (set_version, "version 2 is not 1"),
        (change_the_key, "manifest of another key"),
        (point_outside, "not 64 hex digits"),
        (drop_a_file, "overlay.img"),
    ],
)
def test_a_manifest_that_is_not_this_templates_is_damage(
    store: TemplateStore, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], reason: str
) -> None:
    template = publish(store, tmp_path)
    path = template.folder / "manifest.json"
    document = json.loads(path.read_bytes())
    spoil(document)
    path.chmod(0o644)
    path.write_text(json.dumps(document))
    with pytest.raises(DamagedTemplate, match=reason):
        store.find(template.digest)


def test_a_quarantined_template_says_why_and_the_next_boot_finds_none(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path)
    assert store.quarantine(template.digest, "memory hashes to abc")
    assert store.find(template.digest) is None
    (aside,) = store.quarantined()
    assert (aside.digest, aside.why) == (template.digest, "memory hashes to abc")
    assert aside.at >= template.created_at
    assert not store.quarantine(template.digest, "again")


def test_a_digest_is_quarantined_once_however_often_it_is_built(store: TemplateStore, tmp_path: Path) -> None:
    for why in ("first", "second"):
        store.quarantine(publish(store, tmp_path).digest, why)
    assert [one.why for one in store.quarantined()] == ["second"]
    assert store.remove_quarantined(KEY.digest())
    assert store.quarantined() == ()


def test_who_finds_it_damaged_second_leaves_what_the_first_has_set_aside(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path)
    assert store.quarantine(template.digest, "first", generation=template.generation)
    assert not store.quarantine(template.digest, "second", generation=template.generation)
    assert [(one.digest, one.why) for one in store.quarantined()] == [(template.digest, "first")]


def test_what_was_built_again_since_it_was_found_damaged_is_not_set_aside(store: TemplateStore, tmp_path: Path) -> None:
    damaged, fresh = publish(store, tmp_path), publish(store, tmp_path)
    assert not store.quarantine(damaged.digest, "late", generation=damaged.generation)
    assert store.find(fresh.digest) == fresh
    assert store.quarantine(fresh.digest, "in time", generation=fresh.generation)


def test_a_clone_reads_its_memory_on_after_the_template_was_removed(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path)
    with template.memory.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as clone:
        assert store.remove(template.digest)
        clone[0:5] = b"dirty"
        assert clone[8 * MIB : 8 * MIB + 4] == b"init"
    assert not store.remove(template.digest)
    assert list(store.staging.iterdir()) == []


def run_builder(program: str, *arguments: object) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        (sys.executable, "-c", program, *map(str, arguments)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )


def test_a_builder_killed_while_it_copies_leaves_no_template_and_the_next_sweep_removes_the_rest(
    store: TemplateStore, tmp_path: Path
) -> None:
    builder = run_builder(BUILDER, store.root, tmp_path / "vm")
    builder.communicate()
    assert builder.returncode == -signal.SIGXFSZ  # as final as SIGKILL, and always in the middle of the memory
    assert store.find(KEY.digest()) is None
    assert len(list(store.staging.iterdir())) == 1
    assert store.sweep() == 1
    assert list(store.staging.iterdir()) == []


def test_a_sweep_spares_a_living_builder_and_takes_a_killed_ones_folder(store: TemplateStore) -> None:
    builder = run_builder(WAITER, store.root)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "building\n"
    try:
        assert store.sweep() == 0
    finally:
        builder.kill()
        builder.communicate()
    assert store.sweep() == 1
    assert store.digests() == ()


def test_reading_can_be_stopped_and_tells_how_far_it_came(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path)
    told: dict[str, int] = {}
    store.verify(template, told.__setitem__)
    assert told == {name: blob.bytes for name, blob in template.files.items()}

    def stop(name: str, read: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.verify(template, stop)


def test_two_keys_that_differ_in_one_thing_are_two_templates(store: TemplateStore, tmp_path: Path) -> None:
    publish(store, tmp_path)
    assert store.find(replace(KEY, host_kernel="6.2.0").digest()) is None


def test_gc_removes_the_older_ones_and_what_killed_builders_left(store: TemplateStore, tmp_path: Path) -> None:
    old = publish(store, tmp_path)
    new = publish(store, tmp_path, host_kernel="6.2.0")
    (store.staging / "left").mkdir()
    planned = store.gc(keep=1, dry_run=True)
    assert (planned.templates, len(store.list_templates())) == ((old,), 2)
    done = store.gc(keep=1)
    assert (done.templates, done.unfinished) == ((old,), 1)
    assert store.list_templates() == (new,)


def test_gc_leaves_what_was_set_aside_just_now_and_takes_it_when_asked_for_all_that_is_older(
    store: TemplateStore, tmp_path: Path
) -> None:
    store.quarantine(publish(store, tmp_path).digest, "a test")
    (aside,) = store.quarantined()
    assert store.gc(keep=1).quarantined == ()
    assert store.gc(keep=1, oldest=aside.at + 1).quarantined == (aside,)
    assert store.quarantined() == ()


def test_builders_of_one_template_at_once_leave_one_that_is_whole(store: TemplateStore, tmp_path: Path) -> None:
    files = make_files(tmp_path / "vm")
    with ThreadPoolExecutor(4) as builders:
        built = list(builders.map(lambda _: store.publish(KEY, files), range(4)))
    (left,) = store.list_templates()
    store.verify(left)
    assert left.generation in {one.generation for one in built}
    assert list(store.staging.iterdir()) == []


def test_who_looks_meets_no_wreck_while_others_build_and_remove(store: TemplateStore, tmp_path: Path) -> None:
    files = make_files(tmp_path / "vm")
    with ThreadPoolExecutor(2) as others:
        work: list[Future[object]] = [others.submit(store.publish, KEY, files) for _ in range(6)]
        work += [others.submit(store.remove, KEY.digest()) for _ in range(6)]
        while not all(one.done() for one in work):
            store.find(KEY.digest())
    assert [one.exception() for one in work] == [None] * 12


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user for a moment")
def test_a_store_that_another_user_owns_is_told_as_such(store: TemplateStore, tmp_path: Path) -> None:
    template = publish(store, tmp_path)
    os.seteuid(65534)
    try:
        with pytest.raises(HostFault, match="not this user's"):
            store.find(template.digest)
        with pytest.raises(HostFault, match="not this user's"):
            store.digests()
    finally:
        os.seteuid(0)
