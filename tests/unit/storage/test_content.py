"""Blobs are whole or absent, whatever happens to their writer."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nimbus.storage.content import ImageStore, has_blob, put_bytes, put_file, staged_file, sweep_staging

WRITER = """
import sys
from pathlib import Path
from nimbus.storage.content import ImageStore, staged_file
with staged_file(ImageStore(Path(sys.argv[1]))) as path:
    path.write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def start_writer(store: ImageStore) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        (sys.executable, "-c", WRITER, str(store.root)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def test_a_blob_is_named_by_its_content(store: ImageStore) -> None:
    blob = put_bytes(store, b"kernel")
    assert blob.sha256 == hashlib.sha256(b"kernel").hexdigest()
    assert store.blob_path(blob.sha256).read_bytes() == b"kernel"


def test_every_user_may_read_a_blob_and_none_may_write_it(store: ImageStore) -> None:
    path = store.blob_path(put_bytes(store, b"kernel").sha256)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_the_same_content_is_stored_once(store: ImageStore) -> None:
    first = put_bytes(store, b"kernel")
    inode = store.blob_path(first.sha256).stat().st_ino
    assert put_bytes(store, b"kernel") == first
    assert store.blob_path(first.sha256).stat().st_ino == inode


def test_a_truncated_blob_is_not_there_and_is_written_again(store: ImageStore) -> None:
    blob = put_bytes(store, b"kernel")
    path = store.blob_path(blob.sha256)
    path.unlink()
    path.write_bytes(b"ker")
    assert not has_blob(store, blob)
    put_bytes(store, b"kernel")
    assert path.read_bytes() == b"kernel"


def test_replacing_a_blob_leaves_its_readers_the_old_file(store: ImageStore) -> None:
    blob = put_bytes(store, b"kernel")
    with store.blob_path(blob.sha256).open("rb") as reader:
        put_bytes(store, b"kernel", replace=True)
        assert os.fstat(reader.fileno()).st_ino != store.blob_path(blob.sha256).stat().st_ino
        assert reader.read() == b"kernel"


def test_a_staged_file_moves_in_whole_and_leaves_the_staging_folder_empty(store: ImageStore) -> None:
    with staged_file(store) as path:
        path.write_bytes(b"disk")
        blob = put_file(store, path)
    assert store.blob_path(blob.sha256).read_bytes() == b"disk"
    assert list(store.staging.iterdir()) == []


def fail_halfway(store: ImageStore) -> None:
    with staged_file(store) as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError


def test_a_writer_that_fails_leaves_nothing(store: ImageStore) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_halfway(store)
    assert list(store.staging.iterdir()) == []
    assert not store.blobs.exists()


def test_a_killed_writer_leaves_a_file_that_the_next_sweep_removes(store: ImageStore) -> None:
    writer = start_writer(store)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert len(list(store.staging.iterdir())) == 1
    assert sweep_staging(store) == 1
    assert list(store.staging.iterdir()) == []


def test_a_sweep_spares_the_file_of_a_living_writer(store: ImageStore) -> None:
    writer = start_writer(store)
    try:
        assert sweep_staging(store) == 0
        assert len(list(store.staging.iterdir())) == 1
    finally:
        writer.communicate("")
    assert writer.returncode == 0


def test_sweeping_a_store_that_does_not_exist_is_fine(store: ImageStore) -> None:
    assert sweep_staging(store) == 0
