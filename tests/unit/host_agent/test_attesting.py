"""Before each boot the image's files are checked; what boots is in the record, and an altered image is an alarm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from nimbus.host_agent.attesting import attest_boot
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.vmm.machine import Boot
from nimbus.storage.attest import AlteredImage
from nimbus.storage.content import ImageStore, put_bytes
from nimbus.storage.images import ROLES, Image, Manifest, Provenance, put_manifest, resolve_image
from tests.unit.host_agent.test_ledger import make_record


@pytest.fixture
def image(tmp_path: Path) -> Image:
    store = ImageStore(tmp_path / "images")
    files = {role: put_bytes(store, f"the {role}".encode()) for role in ROLES}
    put_manifest(store, Manifest("base", "2026-11-21T00:00:00+00:00", "6.1.0", files, Provenance("f" * 64)))
    return resolve_image(store, "base")


@pytest.fixture
def record(tmp_path: Path) -> Iterator[OpenRecord]:
    with Ledger(tmp_path / "ledger").create(make_record()) as opened:
        yield opened


def boot_of(image: Image | None) -> Boot:
    return Boot(image, Path("/usr/bin/true"), 0)


def alarms() -> float:
    return REGISTRY.get_sample_value("nimbus_host_agent_security_alarms_total") or 0.0


async def test_what_boots_is_in_the_record_for_whoever_finds_it(image: Image, record: OpenRecord) -> None:
    await attest_boot(record, boot_of(image))
    found = record.ledger.read(record.value.vm)
    assert found is not None
    assert found.attestation is not None
    assert found.attestation == record.value.attestation
    assert found.attestation.rootfs == image.digests["rootfs"]


async def test_an_altered_image_boots_nothing_and_raises_an_alarm(image: Image, record: OpenRecord) -> None:
    image.rootfs.chmod(0o644)
    image.rootfs.write_bytes(b"evil rootf")
    before = alarms()
    with capture_logs() as logs, pytest.raises(AlteredImage, match=r"rootfs at .* nothing boots from it"):
        await attest_boot(record, boot_of(image))
    (told,) = [line for line in logs if line["event"] == "security.alarm"]
    assert told["log_level"] == "error"
    assert told["vm"] == str(record.value.vm)
    assert alarms() == before + 1
    assert record.value.attestation is None


async def test_a_backend_that_gives_a_guest_no_files_attests_nothing(record: OpenRecord) -> None:
    await attest_boot(record, boot_of(None))
    assert record.value.attestation is None
