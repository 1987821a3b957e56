"""The fake's snapshots: a state file with a checksum, and a memory file of the VM's size. Called by vm.py.

A damaged state, a memory cut short, and an override of a device that is not there are refused as the real one does.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from typing import Any

from tests.fakes.devices import Refusal, name_error

_SUM_BYTES = 8
_FILE_TOO_LARGE = 151  # the real one's exit status where RLIMIT_FSIZE stops it


def write_snapshot(state_path: str, memory_path: str, saved: dict[str, Any], mem_mib: int) -> None:
    """Both files, truncated first. Raises Refusal."""
    failed = "Create snapshot error: Cannot perform open on the {} backing file: {}"
    body = zlib.compress(json.dumps(saved).encode(), 0)
    try:
        _write(state_path, body + zlib.crc32(body).to_bytes(_SUM_BYTES, "little"))
    except OSError as error:
        raise Refusal(failed.format("snapshot", name_error(error))) from None
    try:
        _write(memory_path, b"the guest's memory", mem_mib << 20)
    except OSError as error:
        raise Refusal(failed.format("memory", name_error(error))) from None


def _write(path: str, data: bytes, size: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, data)
        if size:
            os.truncate(fd, size)
    except OSError as error:
        if error.errno == errno.EFBIG:
            os._exit(_FILE_TOO_LARGE)
        raise
    finally:
        os.close(fd)


def read_snapshot(state_path: str, memory_path: str, load: dict[str, Any]) -> dict[str, Any]:
    """What was saved, with the overrides of this load. Raises Refusal."""
    saved = _read_state(state_path)
    devices = saved["devices"]
    for override in load.get("network_overrides") or []:
        if override["iface_id"] not in devices["nics"]:
            raise Refusal("Failed to get snapshot state from file: Unknown Network Device.")
        devices["nics"][override["iface_id"]]["host_dev_name"] = override["host_dev_name"]
    if load.get("vsock_override") is not None:
        if devices["vsock"] is None:
            raise Refusal("Failed to get snapshot state from file: Unknown Vsock Device.")
        devices["vsock"]["uds_path"] = load["vsock_override"]["uds_path"]
    _check_memory(memory_path, saved["machine"]["mem_size_mib"] << 20)
    return saved


def _read_state(path: str) -> dict[str, Any]:
    failed = "Failed to get snapshot state from file: {}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refusal(failed.format(f"Failed to open snapshot file: {name_error(error)}")) from None
    with os.fdopen(fd, "rb") as file:
        data = file.read()
    failed = failed.format("Failed to load snapshot state from file: {}")
    if len(data) < _SUM_BYTES:
        raise Refusal(failed.format("IO Error: File too short to contain CRC"))
    body, told = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    try:
        saved = json.loads(zlib.decompress(body))
    except (zlib.error, ValueError):
        raise Refusal(failed.format("An error occurred during bitcode serialization: bitcode error")) from None
    if zlib.crc32(body).to_bytes(_SUM_BYTES, "little") != told:
        raise Refusal(failed.format("CRC64 validation failed"))
    assert isinstance(saved, dict)
    return saved


def _check_memory(path: str, size: int) -> None:
    failed = "Failed to load guest memory: Error creating guest memory from file: {}"
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise Refusal(failed.format(f"Failed to load guest memory: {name_error(error)}")) from None
    if found < size:
        why = "Failed to restore guest memory: Total sum of memory regions exceeds largest possible file offset"
        raise Refusal(failed.format(why))
