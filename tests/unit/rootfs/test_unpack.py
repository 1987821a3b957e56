"""Out of an archive comes what was named, where it was told to, and nothing else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from nimbus.model.errors import HostFault
from nimbus.rootfs.unpack import unpack_members

LIMIT = 1 << 20


def member(name: str, content: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def write_tgz(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def unpack(tmp_path: Path, archive: Path, *names: str) -> dict[str, bytes]:
    folder = tmp_path / "out"
    folder.mkdir()
    targets = {name: folder / str(number) for number, name in enumerate(names)}
    unpack_members(archive, "firecracker v1", targets, LIMIT)
    assert len(list(folder.iterdir())) == len(names)
    return {name: path.read_bytes() for name, path in targets.items()}


def test_only_what_was_named_is_written_and_never_where_the_archive_says(tmp_path: Path) -> None:
    archive = write_tgz(
        tmp_path / "a.tgz",
        member("../../etc/cron.d/evil", b"evil"),
        member("/abs", b"evil"),
        member("./r/firecracker", b"fc", mode=0o4777, uid=1000),
        member("r/jailer", b"j"),
    )
    assert unpack(tmp_path, archive, "r/firecracker", "r/jailer") == {"r/firecracker": b"fc", "r/jailer": b"j"}
    assert (tmp_path / "out" / "0").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_named_member_that_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive = write_tgz(tmp_path / "a.tgz", member("fc", type=kind, linkname="/etc/shadow"))
    with pytest.raises(HostFault, match="archive of firecracker v1 cannot be used: fc in it is no plain file"):
        unpack(tmp_path, archive, "fc")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    archive = write_tgz(tmp_path / "a.tgz", member("fc", b"1"), member("fc", b"2"))
    with pytest.raises(HostFault, match="it holds fc twice"):
        unpack(tmp_path, archive, "fc")


def test_a_member_that_is_missing_is_named(tmp_path: Path) -> None:
    archive = write_tgz(tmp_path / "a.tgz", member("fc", b"1"))
    with pytest.raises(HostFault, match="it does not hold jailer"):
        unpack(tmp_path, archive, "fc", "jailer")


def test_a_small_archive_of_much_is_stopped(tmp_path: Path) -> None:
    archive = write_tgz(tmp_path / "a.tgz", member("fc", bytes(LIMIT - 1)), member("jailer", bytes(2)))
    with pytest.raises(HostFault, match="jailer makes more than 1048576 bytes unpacked"):
        unpack(tmp_path, archive, "fc", "jailer")


@pytest.mark.parametrize("damage", ["cut", "no gzip", "empty"])
def test_a_damaged_archive_is_an_error_in_one_line(tmp_path: Path, damage: str) -> None:
    whole = write_tgz(tmp_path / "a.tgz", member("fc", bytes(range(256)) * 100)).read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "no gzip": b"x" * 600, "empty": b""}[damage]
    (tmp_path / "a.tgz").write_bytes(damaged)
    with pytest.raises(HostFault, match="archive of firecracker v1 cannot be used"):
        unpack(tmp_path, tmp_path / "a.tgz", "fc")
