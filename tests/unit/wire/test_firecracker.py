"""wire/firecracker.py: what each call asks for, what it refuses to ask, and which release it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.model.errors import HostFault, Refused
from nimbus.wire.firecracker import (
    MAX_BODY_BYTES,
    ApiCall,
    ApiRefused,
    Drive,
    Nic,
    RateLimit,
    Restore,
    TokenBucket,
    Version,
    check_call,
    create_snapshot,
    limit_drive,
    limit_nic,
    load_snapshot,
    put_metadata,
    render_body,
    render_connect,
    set_boot,
    set_drive,
    set_machine,
    set_metadata_service,
    set_nic,
    set_serial,
    set_vsock,
)

DISK = Drive("root", "/rootfs", read_only=True, root=True)
CARD = Nic("net", "nimbus0", "02:4e:42:00:00:01")
LIMIT = RateLimit(bandwidth=TokenBucket(1 << 20, 1000, burst=1 << 22), ops=TokenBucket(100, 1000))


def test_a_disk_is_never_flushed_and_never_asynchronous() -> None:
    assert set_drive(DISK) == ApiCall(
        "PUT",
        "/drives/root",
        {
            "drive_id": "root",
            "path_on_host": "/rootfs",
            "is_root_device": True,
            "is_read_only": True,
            "cache_type": "Unsafe",
            "io_engine": "Sync",
        },
    )


def test_a_limit_of_a_device_is_said_only_where_there_is_one() -> None:
    body = set_drive(replace(DISK, limit=LIMIT)).body
    assert body is not None
    assert body["rate_limiter"] == {
        "bandwidth": {"size": 1 << 20, "refill_time": 1000, "one_time_burst": 1 << 22},
        "ops": {"size": 100, "refill_time": 1000},
    }
    assert limit_drive("root", RateLimit()).body == {"drive_id": "root"}
    assert limit_nic("net", LIMIT, RateLimit()).body == {"iface_id": "net", "rx_rate_limiter": LIMIT.render()}


def test_a_restore_loads_paused_and_names_only_what_is_to_be_another() -> None:
    plain = load_snapshot(Restore("/state", "/mem"))
    assert plain.body == {
        "snapshot_path": "/state",
        "mem_backend": {"backend_type": "File", "backend_path": "/mem"},
        "resume_vm": False,
    }
    moved = load_snapshot(Restore("/state", "/mem", {"net": "nimbus0"}, "/run/v.sock", clock_realtime=True)).body
    assert moved is not None
    assert moved["network_overrides"] == [{"iface_id": "net", "host_dev_name": "nimbus0"}]
    assert moved["vsock_override"] == {"uds_path": "/run/v.sock"}
    assert moved["clock_realtime"] is True


@pytest.mark.parametrize(
    ("call", "since"),
    [
        (load_snapshot(Restore("/state", "/mem")), Version(1, 0)),
        (load_snapshot(Restore("/state", "/mem", {"net": "t0"})), Version(1, 12)),
        (load_snapshot(Restore("/state", "/mem", vsock="/v")), Version(1, 16)),
        (load_snapshot(Restore("/state", "/mem", clock_realtime=True)), Version(1, 16)),
        (set_serial("/log"), Version(1, 14)),
        (set_serial(None, TokenBucket(1, 1)), Version(1, 16)),
        (set_nic(CARD), Version(1, 0)),
        (set_nic(replace(CARD, mtu=1400)), Version(1, 16)),
    ],
)
def test_a_call_is_held_back_from_a_release_that_does_not_know_its_fields(call: ApiCall, since: Version) -> None:
    assert call.since == since
    check_call(call, since)
    check_call(call, Version(since.major, since.minor, 3))
    if since > Version(1, 0):
        with pytest.raises(HostFault, match="upgrade"):
            check_call(call, Version(since.major, since.minor - 1, 9))


def test_guests_must_fetch_a_token_for_their_metadata() -> None:
    body = set_metadata_service(["net"]).body
    assert body is not None
    assert (body["version"], body["network_interfaces"]) == ("V2", ["net"])


@pytest.mark.parametrize(
    "ask",
    [
        lambda: set_machine(0, 128),
        lambda: set_machine(33, 128),
        lambda: set_machine(3, 128, smt=True),
        lambda: set_machine(1, 0),
        lambda: set_machine(1, 127, huge_pages="2M"),
        lambda: set_boot("kernel", "quiet"),
        lambda: set_boot("/kernel", "quiet\nroot=evil"),
        lambda: set_boot("/kernel", "grüße"),
        lambda: set_boot("/a/../b", "quiet"),
        lambda: set_drive(replace(DISK, name="my-disk")),
        lambda: set_drive(replace(DISK, name="")),
        lambda: set_drive(replace(DISK, path="/a\0b")),
        lambda: set_nic(replace(CARD, name="../vm")),
        lambda: set_vsock(2, "/v"),
        lambda: set_vsock(2**32 - 1, "/v"),
        lambda: set_vsock(3, "/" + "v" * 107),
        lambda: create_snapshot("/s", "mem"),
        lambda: TokenBucket(-1, 1).render(),
    ],
)
def test_what_firecracker_would_misread_is_never_asked(ask: Callable[[], object]) -> None:
    with pytest.raises(Refused):
        ask()


def test_metadata_beyond_what_firecracker_takes_is_refused_before_it_is_sent() -> None:
    fits = put_metadata({"a": "x" * (MAX_BODY_BYTES - 8)})
    assert len(render_body(fits)) == MAX_BODY_BYTES
    with pytest.raises(Refused, match="51201"):
        render_body(put_metadata({"a": "x" * (MAX_BODY_BYTES - 7)}))


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)))
def test_metadata_arrives_as_it_was_given(document: dict[str, object]) -> None:
    assert json.loads(render_body(put_metadata(document))) == document


def test_a_call_is_named_by_its_method_and_path_and_its_body_stays_out_of_errors() -> None:
    call = put_metadata({"token": "s3cret"})
    error = ApiRefused(call, 400, "no")
    assert str(error) == "Firecracker refused PUT /mmds: no"


def test_the_vsock_is_asked_for_a_port_in_one_line() -> None:
    assert render_connect(1024) == b"CONNECT 1024\n"
