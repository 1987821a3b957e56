"""`nimbus run` asked for what it cannot do: one clear line, the right exit status, and nothing left. No guest boots."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import BUILT_IMAGES
from tests.vm.conftest import open_small
from tests.vm.terminal import Done, Terminal

pytestmark = pytest.mark.root

USAGE, HOST_FAULT = 2, 125
# A /dev without kvm, for a process of its own.
WITHOUT_KVM = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"', "sh")
# root in name only: the checkout may lie where nobody else can read it
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
HARDWARE_KVM = any(Path("/sys/module", module).exists() for module in ("kvm_intel", "kvm_amd"))


def check(done: Done, status: int, *words: str) -> None:
    """One answer for a person: the status, every word in it, and no traceback."""
    told = done.stderr.decode()
    assert done.returncode == status, told
    assert "Traceback" not in told
    for word in words:
        assert word in told
    assert done.stdout == b""


def test_an_unknown_image_is_named_with_the_command_that_makes_it(terminal: Terminal) -> None:
    check(terminal.refuse("--image", "nope", "--", "true"), USAGE, "no image 'nope'", "there: base", "nimbus assets")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--memory", "64M"), "memory of 64 MiB is below the 96 MiB"),
        (("--memory", "lots"), "'lots' is no size"),
        (("--memory", "-1"), "'-1' is no size"),
        (("--disk", "1M"), "disk of 1 MiB is below"),
        (("--cpus", "0"), "cpus=0"),
        (("--cpus", "some"), "'some' is not a valid integer"),
        (("--env", "=x"), "NAME=VALUE is needed"),
        (("--timeout", "0"), "timeout must be more than 0"),
        (("--timeout", "soon"), "'soon' is not a valid float"),
        (("--image", "../etc"), "is no image name"),
        (("--no-such-option",), "No such option"),
    ],
)
def test_a_bad_option_says_what_is_wrong(terminal: Terminal, words: tuple[str, ...], told: str) -> None:
    check(terminal.refuse(*words, "--", "true"), USAGE, told)


def test_no_command_shows_the_usage(terminal: Terminal) -> None:
    check(terminal.refuse(), USAGE, "Usage: nimbus run", "Missing argument")


def test_an_empty_command_is_refused(terminal: Terminal) -> None:
    check(terminal.refuse("--", ""), USAGE, "a command needs at least one word")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NIMBUS_VMM", "bogus", "NIMBUS_VMM='bogus': auto, fake, firecracker, qemu are known"),
        ("NIMBUS_ACCEL", "bogus", "NIMBUS_ACCEL='bogus'"),
        ("NIMBUS_VM_SLOTS", "many", "NIMBUS_VM_SLOTS"),
        ("NIMBUS_GUEST_PORTS", "80", "'80' is not PORT=ADDRESS:PORT"),
    ],
)
def test_a_bad_variable_is_named(terminal: Terminal, name: str, value: str, told: str) -> None:
    check(terminal.refuse("--", "true", env={name: value}), USAGE, told)


def test_without_privileges_it_says_that_root_is_needed(terminal: Terminal) -> None:
    done = terminal.refuse("--", "true", before=POWERLESS)
    check(done, HOST_FAULT, "root (sudo)", "CAP_NET_ADMIN")
    assert done.stderr.count(b"\n") == 1


def test_a_kernel_that_is_not_there_is_named(terminal: Terminal) -> None:
    done = terminal.refuse("--", "true", env={"NIMBUS_KERNEL_IMAGE": "/no/such/kernel"})
    check(done, HOST_FAULT, "NIMBUS_KERNEL_IMAGE names /no/such/kernel")


def test_a_kernel_that_is_none_ends_with_the_vmms_own_words(terminal: Terminal) -> None:
    junk = terminal.territory.state_root / "junk"
    junk.write_bytes(b"no kernel at all\n" * 100)
    junk.chmod(0o644)
    done = terminal.refuse("--", "true", env={"NIMBUS_KERNEL_IMAGE": str(junk)})
    check(done, HOST_FAULT, "the guest never said hello in 3 boots", "console ends: qemu: linux kernel too old")


def test_the_fake_says_that_it_is_no_guest(terminal: Terminal) -> None:
    done = terminal.refuse("--", "true", env={"NIMBUS_VMM": "fake"})
    check(done, 0, "no guest, no isolation")


def test_kvm_where_there_is_none_is_said(terminal: Terminal) -> None:
    done = terminal.refuse("--", "true", before=WITHOUT_KVM, env={"NIMBUS_ACCEL": "kvm"})
    check(done, HOST_FAULT, "no /dev/kvm", "NIMBUS_ACCEL=tcg")


@pytest.mark.skipif(HARDWARE_KVM, reason="this host's KVM is real, and boots guests")
@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="this host has no /dev/kvm that could lie")
def test_kvm_that_cannot_boot_a_guest_says_so_and_what_to_do(terminal: Terminal) -> None:
    done = terminal.refuse("--", "true", env={"NIMBUS_ACCEL": "kvm"})
    check(done, HOST_FAULT, "base on qemu-kvm", "never said hello", "/dev/kvm may not work", "NIMBUS_ACCEL=tcg")


@pytest.fixture
def store(terminal: Terminal) -> Path:
    """A copy of the built images that a test may spoil."""
    images = terminal.territory.state_root / "images"
    images.unlink()
    shutil.copytree(BUILT_IMAGES / "manifests", images / "manifests")
    (images / "blobs" / "sha256").mkdir(parents=True)
    for blob in (BUILT_IMAGES / "blobs" / "sha256").iterdir():
        (images / "blobs" / "sha256" / blob.name).symlink_to(blob)
    return images


def blob_of(store: Path, role: str) -> Path:
    manifest = json.loads((store / "manifests" / "base.json").read_text())
    return store / "blobs" / "sha256" / str(manifest["files"][role]["sha256"])


@pytest.mark.parametrize("role", ["vmlinuz", "initramfs", "rootfs"])
def test_a_missing_part_of_an_image_is_named_with_its_repair(terminal: Terminal, store: Path, role: str) -> None:
    blob_of(store, role).unlink()
    check(terminal.refuse("--", "true"), HOST_FAULT, f"{role} at", "it is missing", "nimbus assets build", "repairs it")


def test_a_torn_part_of_an_image_is_named_with_its_repair(terminal: Terminal, store: Path) -> None:
    blob_of(store, "rootfs").unlink()
    blob_of(store, "rootfs").write_bytes(b"half of it")
    check(terminal.refuse("--", "true"), HOST_FAULT, "10 bytes instead of", "nimbus assets build", "repairs it")


def test_a_manifest_that_makes_no_sense_is_named_with_its_repair(terminal: Terminal, store: Path) -> None:
    manifest = store / "manifests" / "base.json"
    manifest.unlink()
    manifest.write_text("{")
    check(terminal.refuse("--", "true"), HOST_FAULT, "cannot be understood", "nimbus assets build --force")


@pytest.fixture
def small_terminal(terminal: Terminal) -> Iterator[Terminal]:
    with open_small(terminal, size_mib=1) as opened:
        yield opened


def test_a_disk_without_room_for_a_vm_is_said_and_nothing_is_left(small_terminal: Terminal) -> None:
    check(small_terminal.refuse("--", "true"), HOST_FAULT, "disk full", "MiB free at")
    assert files_below(small_terminal) == ["images"]


def test_a_disk_without_room_for_a_record_is_said_and_nothing_is_left(small_terminal: Terminal) -> None:
    filler = small_terminal.territory.state_root / "filler"
    with filler.open("wb", buffering=0) as file:
        fill(file.fileno())
    check(small_terminal.refuse("--", "true"), HOST_FAULT, "No space left on device")
    assert files_below(small_terminal) == ["filler", "images"]


def fill(fd: int) -> None:
    try:
        while os.write(fd, b"\0" * 4096):
            pass
    except OSError:
        return


def files_below(terminal: Terminal) -> list[str]:
    return sorted(
        path.name for path in terminal.territory.state_root.rglob("*") if not path.is_dir() or path.is_symlink()
    )
