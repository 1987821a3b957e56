"""What a real guest booted from is told with its end; from an altered image, nothing boots and nothing stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nimbus.host.inventory import Territory
from nimbus.storage.content import ImageStore
from nimbus.storage.images import Image, resolve_image
from tests.guests import count_boots
from tests.hosts import BUILT_IMAGES
from tests.oracle import leak_oracle
from tests.vm.snapshots import open_clone_host
from tests.vm.terminal import Terminal

pytestmark = [pytest.mark.vm, pytest.mark.root]
__all__ = ["leak_oracle"]

HOST_FAULT = 125


def built() -> Image:
    return resolve_image(ImageStore(BUILT_IMAGES), "base")


def test_a_run_tells_what_it_booted_from(terminal: Terminal) -> None:
    told = json.loads(terminal.run("--json", "--", "true").stdout)["attestation"]
    image = built()
    assert (told["image"], told["manifest"], told["overridden"]) == ("base", image.manifest_sha256, [])
    assert {told[name] for name in ("kernel", "initramfs", "rootfs")} == {
        image.digests[role] for role in ("vmlinux", "initramfs", "rootfs")
    }


def test_a_root_file_system_of_the_hosts_own_is_told_as_such(terminal: Terminal) -> None:
    mine = terminal.territory.state_root / "mine"
    shutil.copyfile(built().rootfs, mine)
    mine.chmod(0o644)
    done = terminal.run("--json", "--", "true", env={"NIMBUS_ROOTFS_IMAGE": str(mine)})
    mine.unlink()
    told = json.loads(done.stdout)["attestation"]
    assert (told["overridden"], told["rootfs"]) == (["rootfs"], built().digests["rootfs"])


@pytest.mark.parametrize("role", ["vmlinux", "initramfs", "rootfs"])
def test_nothing_boots_from_an_image_of_which_one_bit_was_flipped(terminal: Terminal, role: str) -> None:
    flip_a_bit(terminal.territory.state_root / "images", role)
    done = terminal.refuse("--", "true")
    told = done.stderr.decode()
    assert done.returncode == HOST_FAULT, told
    assert f"image 'base': {role} at" in told
    assert "nothing boots from it" in told
    assert "Traceback" not in told
    assert not terminal.has_record()


def flip_a_bit(images: Path, role: str) -> None:
    """In a copy of the built images, where nobody would see it: the same size, the same times."""
    images.unlink()
    shutil.copytree(BUILT_IMAGES, images, ignore=shutil.ignore_patterns("cache", "templates", "staging"))
    image = resolve_image(ImageStore(images), "base")
    path: Path = getattr(image, role)
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_restored_machine_tells_its_template_too(leak_oracle: Territory) -> None:
    async with open_clone_host(leak_oracle) as clones:
        outcome, _ = await clones.run("true")
    count_boots("qemu", 2)
    assert outcome.attestation is not None
    assert outcome.attestation.template == clones.template.digest
    assert outcome.attestation.rootfs == built().digests["rootfs"]
