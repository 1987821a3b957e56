"""No template is handed out before it was read, and none is read twice without a cause."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nimbus.storage.attest import REREAD_S
from nimbus.storage.templates import DamagedTemplate, TemplateStore
from nimbus.storage.verified import VerifiedTemplates
from tests.unit.storage.templates import KEY, damage, publish


class Reads:
    """Counts the files that were read from their beginning to their end, or as far as it went."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, read: int) -> None:
        if name not in self.names[-1:]:
            self.names.append(name)


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path / "templates")


def test_where_there_is_no_template_there_is_none_to_verify(store: TemplateStore) -> None:
    assert VerifiedTemplates(store).find(KEY.digest()) is None


def test_a_template_is_read_once_for_many_boots(store: TemplateStore, tmp_path: Path) -> None:
    template, verified, reads = publish(store, tmp_path), VerifiedTemplates(store), Reads()
    assert [verified.find(template.digest, reads) for _ in range(3)] == [template] * 3
    assert reads.names == ["memory", "state", "overlay.img"]


def test_a_template_that_was_built_again_is_read_again(store: TemplateStore, tmp_path: Path) -> None:
    verified, reads = VerifiedTemplates(store), Reads()
    for _ in range(2):
        verified.find(publish(store, tmp_path).digest, reads)
    assert len(reads.names) == 6


def test_a_file_that_was_only_touched_is_read_again_and_stays(store: TemplateStore, tmp_path: Path) -> None:
    template, verified, reads = publish(store, tmp_path), VerifiedTemplates(store), Reads()
    verified.find(template.digest, reads)
    os.utime(template.memory, ns=(0, 0))
    assert verified.find(template.digest, reads) == template
    assert len(reads.names) == 6


def test_damage_is_found_though_the_file_looks_as_old_as_before(store: TemplateStore, tmp_path: Path) -> None:
    template, clock = publish(store, tmp_path), [0.0]
    verified = VerifiedTemplates(store, lambda: clock[0])
    verified.find(template.digest)
    before = template.memory.stat()
    damage(template.memory, 3, b"!")
    os.utime(template.memory, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock[0] += REREAD_S
    with pytest.raises(DamagedTemplate, match="memory hashes to"):
        verified.find(template.digest)


def test_a_hard_link_of_a_jail_costs_no_second_reading_for_a_while(store: TemplateStore, tmp_path: Path) -> None:
    template, clock, reads = publish(store, tmp_path), [0.0], Reads()
    verified = VerifiedTemplates(store, lambda: clock[0])
    for number in range(3):
        os.link(template.memory, tmp_path / f"jailed-{number}")
        assert verified.find(template.digest, reads) == template
    assert len(reads.names) == 3
    clock[0] += REREAD_S
    os.unlink(tmp_path / "jailed-0")
    assert verified.find(template.digest, reads) == template
    assert len(reads.names) == 6


def test_a_damaged_template_is_set_aside_and_the_next_boot_is_cold(store: TemplateStore, tmp_path: Path) -> None:
    template, verified = publish(store, tmp_path), VerifiedTemplates(store)
    damage(template.memory, 3, b"!")
    with pytest.raises(DamagedTemplate):
        verified.find(template.digest)
    assert verified.find(template.digest) is None
    (aside,) = store.quarantined()
    assert aside.why.startswith("memory hashes to")


def test_a_wreck_is_set_aside_without_being_read(store: TemplateStore, tmp_path: Path) -> None:
    template, verified, reads = publish(store, tmp_path), VerifiedTemplates(store), Reads()
    template.state.unlink()
    with pytest.raises(DamagedTemplate, match="state is missing"):
        verified.find(template.digest, reads)
    assert (verified.find(template.digest), reads.names) == (None, [])


def test_a_template_that_is_removed_while_it_is_read_is_none_and_no_damage(
    store: TemplateStore, tmp_path: Path
) -> None:
    template = publish(store, tmp_path)

    def remove(name: str, read: int) -> None:
        store.remove(template.digest)

    assert VerifiedTemplates(store).find(template.digest, remove) is None
    assert store.quarantined() == ()


def test_machines_that_start_together_read_a_template_once(store: TemplateStore, tmp_path: Path) -> None:
    template, verified, reads = publish(store, tmp_path), VerifiedTemplates(store), Reads()
    together = threading.Barrier(4)
    found = []

    def start() -> None:
        together.wait()
        found.append(verified.find(template.digest, reads))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [template] * 4
    assert len(reads.names) == 3
