"""The Firecracker API as data: each call that a boot, a restore, a snapshot or a pause needs.

Pure: sends nothing and opens nothing. host_agent/vmm/firecracker.py strings these calls together, vmm/fcapi.py carries
them out, wire/fchttp.py makes bytes of them, wire/fcanswers.py reads what comes back. All paths are as the jailed VMM
sees them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nimbus.model.errors import HostFault, Refused

MAX_BODY_BYTES = 51_200  # Firecracker's own limit of a request (--http-api-max-payload-size), and of all metadata
MAX_VCPUS = 32
MAX_SOCKET_PATH = 107  # sun_path without its NUL
NAME = re.compile(r"[A-Za-z0-9_]{1,64}")  # of a drive or an interface

Method = Literal["GET", "PUT", "PATCH"]
HugePages = Literal["None", "2M"]
Json = Mapping[str, object]


class Version(NamedTuple):
    """A release of Firecracker. Its patch releases and development builds speak like the release they are named for."""

    major: int
    minor: int
    patch: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


ANY = Version(1, 0)
SERIAL_OUT = Version(1, 14)
SERIAL_LIMIT = Version(1, 16)
MTU = Version(1, 16)
NETWORK_OVERRIDES = Version(1, 12)
VSOCK_OVERRIDE = Version(1, 16)
CLOCK_REALTIME = Version(1, 16)


@dataclass(frozen=True)
class ApiCall:
    """One request. `since` is the first release that knows every field of it: an older one refuses them all."""

    method: Method
    path: str
    body: Json | None = None
    since: Version = ANY

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class ApiRefused(HostFault):
    """Firecracker refused a call. `fault` is its own word for why, `call` what was refused."""

    def __init__(self, call: ApiCall, status: int, fault: str) -> None:
        super().__init__(f"Firecracker refused {call}: {fault}")
        self.call = call
        self.status = status
        self.fault = fault


@dataclass(frozen=True)
class TokenBucket:
    """At most `size` at once, refilled within `refill_ms`; `burst` once on top of that."""

    size: int
    refill_ms: int
    burst: int = 0

    def render(self) -> Json:
        if min(self.size, self.refill_ms, self.burst) < 0:
            raise Refused("a rate limit is no negative number")
        burst = {"one_time_burst": self.burst} if self.burst else {}
        return {"size": self.size, "refill_time": self.refill_ms, **burst}


@dataclass(frozen=True)
class RateLimit:
    """Limits of one device. An empty one says nothing, and in a PATCH leaves what is."""

    bandwidth: TokenBucket | None = None  # bytes
    ops: TokenBucket | None = None

    def render(self) -> Json:
        parts = {"bandwidth": self.bandwidth, "ops": self.ops}
        return {name: bucket.render() for name, bucket in parts.items() if bucket is not None}


@dataclass(frozen=True)
class Drive:
    """A virtio disk. Never flushed to the host's disk: it is thrown away with its VM."""

    name: str
    path: str
    read_only: bool
    root: bool = False
    limit: RateLimit = RateLimit()


@dataclass(frozen=True)
class Nic:
    """A virtio network card on a tap of the VM's netns."""

    name: str
    tap: str
    mac: str
    mtu: int | None = None
    rx: RateLimit = RateLimit()
    tx: RateLimit = RateLimit()


@dataclass(frozen=True)
class Restore:
    """What to load, and what of it is to be another than when it was saved."""

    state: str
    memory: str
    taps: Mapping[str, str] | None = None  # tap by interface
    vsock: str | None = None
    clock_realtime: bool = False


def describe_instance() -> ApiCall:
    return ApiCall("GET", "/")


def ask_version() -> ApiCall:
    return ApiCall("GET", "/version")


def ask_config() -> ApiCall:
    """All that is configured: what a restore is checked by before its vCPUs run."""
    return ApiCall("GET", "/vm/config")


def set_logger(path: str, level: str = "Warning") -> ApiCall:
    return ApiCall("PUT", "/logger", {"log_path": _path(path), "level": level})


def set_metrics(path: str) -> ApiCall:
    return ApiCall("PUT", "/metrics", {"metrics_path": _path(path)})


def set_serial(path: str | None, limit: TokenBucket | None = None) -> ApiCall:
    """Where the serial console goes (an existing file or FIFO; None: the VMM's stdout), and how much of it."""
    body = {} if path is None else {"serial_out_path": _path(path)}
    if limit is None:
        return ApiCall("PUT", "/serial", body, SERIAL_OUT)
    return ApiCall("PUT", "/serial", {**body, "rate_limiter": limit.render()}, SERIAL_LIMIT)


def set_machine(vcpus: int, mem_mib: int, *, smt: bool = False, huge_pages: HugePages = "None") -> ApiCall:
    if not 1 <= vcpus <= MAX_VCPUS or (smt and vcpus > 1 and vcpus % 2):
        raise Refused(f"Firecracker gives 1 to {MAX_VCPUS} vCPUs, with SMT an even number, and not {vcpus}")
    if mem_mib < 1 or (huge_pages == "2M" and mem_mib % 2):
        raise Refused(f"Firecracker cannot give {mem_mib} MiB of memory in pages of size {huge_pages}")
    body: dict[str, object] = {"vcpu_count": vcpus, "mem_size_mib": mem_mib, "smt": smt, "track_dirty_pages": False}
    return ApiCall("PUT", "/machine-config", {**body, "huge_pages": huge_pages})


def set_boot(kernel: str, line: str, initrd: str | None = None) -> ApiCall:
    if not line.isascii() or not line.isprintable():
        raise Refused("a kernel command line is printable ASCII")
    body = {"kernel_image_path": _path(kernel), "boot_args": line}
    return ApiCall("PUT", "/boot-source", body if initrd is None else {**body, "initrd_path": _path(initrd)})


def set_drive(drive: Drive) -> ApiCall:
    body: dict[str, object] = {
        "drive_id": _name(drive.name),
        "path_on_host": _path(drive.path),
        "is_root_device": drive.root,
        "is_read_only": drive.read_only,
        "cache_type": "Unsafe",
        "io_engine": "Sync",  # Async costs up to 110 ms when the device is made or restored
    }
    return ApiCall("PUT", f"/drives/{drive.name}", body | _limits(rate_limiter=drive.limit))


def set_nic(nic: Nic) -> ApiCall:
    body: dict[str, object] = {"iface_id": _name(nic.name), "host_dev_name": nic.tap, "guest_mac": nic.mac}
    body |= _limits(rx_rate_limiter=nic.rx, tx_rate_limiter=nic.tx)
    if nic.mtu is None:
        return ApiCall("PUT", f"/network-interfaces/{nic.name}", body)
    return ApiCall("PUT", f"/network-interfaces/{nic.name}", {**body, "mtu": nic.mtu}, MTU)


def set_vsock(cid: int, socket_path: str) -> ApiCall:
    if not 3 <= cid < 2**32 - 1:  # 0 to 2 and the last are the hypervisor's, the host's and everybody's
        raise Refused(f"{cid} is no context id of a guest")
    return ApiCall("PUT", "/vsock", {"guest_cid": cid, "uds_path": _socket_path(socket_path)})


def set_entropy() -> ApiCall:
    return ApiCall("PUT", "/entropy", {})


def set_metadata_service(nics: Sequence[str], address: str = "169.254.169.254") -> ApiCall:
    """After the cards it names. V2 is said, because the default asks guests for no token."""
    names = [_name(name) for name in nics]
    return ApiCall("PUT", "/mmds/config", {"version": "V2", "network_interfaces": names, "ipv4_address": address})


def put_metadata(document: Json) -> ApiCall:
    return ApiCall("PUT", "/mmds", document)


def start_instance() -> ApiCall:
    return _act("InstanceStart")


def press_ctrl_alt_del() -> ApiCall:
    return _act("SendCtrlAltDel")


def flush_metrics() -> ApiCall:
    return _act("FlushMetrics")


def pause_vm() -> ApiCall:
    return ApiCall("PATCH", "/vm", {"state": "Paused"})


def resume_vm() -> ApiCall:
    return ApiCall("PATCH", "/vm", {"state": "Resumed"})


def create_snapshot(state: str, memory: str) -> ApiCall:
    """Of a paused VM. Existing files are truncated, so these must be nobody's."""
    body = {"snapshot_path": _path(state), "mem_file_path": _path(memory), "snapshot_type": "Full"}
    return ApiCall("PUT", "/snapshot/create", body)


def load_snapshot(restore: Restore) -> ApiCall:
    """Into a fresh process, paused: threads are pinned and limits set before anything of it runs."""
    body: dict[str, object] = {
        "snapshot_path": _path(restore.state),
        "mem_backend": {"backend_type": "File", "backend_path": _path(restore.memory)},
        "resume_vm": False,
    }
    since = [ANY]
    if restore.taps is not None:
        body["network_overrides"] = [{"iface_id": _name(n), "host_dev_name": tap} for n, tap in restore.taps.items()]
        since.append(NETWORK_OVERRIDES)
    if restore.vsock is not None:
        body["vsock_override"] = {"uds_path": _socket_path(restore.vsock)}
        since.append(VSOCK_OVERRIDE)
    if restore.clock_realtime:
        body["clock_realtime"] = True
        since.append(CLOCK_REALTIME)
    return ApiCall("PUT", "/snapshot/load", body, max(since))


def limit_drive(name: str, limit: RateLimit) -> ApiCall:
    """Limits in a snapshot are those of the day it was made: set again after each load."""
    return ApiCall("PATCH", f"/drives/{_name(name)}", {"drive_id": name} | _limits(rate_limiter=limit))


def limit_nic(name: str, rx: RateLimit, tx: RateLimit) -> ApiCall:
    body = {"iface_id": _name(name)} | _limits(rx_rate_limiter=rx, tx_rate_limiter=tx)
    return ApiCall("PATCH", f"/network-interfaces/{name}", body)


def render_connect(port: int) -> bytes:
    """The first line on the vsock's socket: which port of the guest is wanted."""
    return f"CONNECT {port}\n".encode()


def check_call(call: ApiCall, version: Version) -> None:
    """Raise HostFault where this release would refuse a field of the call for being unknown to it."""
    if version < call.since:
        raise HostFault(f"{call} needs Firecracker {call.since} and this host runs {version}: upgrade it")


def render_body(call: ApiCall) -> bytes:
    """The JSON of a call; Refused where Firecracker would take it for too long."""
    if call.body is None:
        return b""
    body = json.dumps(call.body, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > MAX_BODY_BYTES:
        raise Refused(f"{call} has {len(body)} bytes, and Firecracker takes {MAX_BODY_BYTES}: send less")
    return body


def _act(action: str) -> ApiCall:
    return ApiCall("PUT", "/actions", {"action_type": action})


def _limits(**limits: RateLimit) -> dict[str, object]:
    return {name: limit.render() for name, limit in limits.items() if limit != RateLimit()}


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Refused(f"{name!r} is no name for a device: 1 to 64 of A-Z, a-z, 0-9 and _ are")
    return name


def _path(path: str) -> str:
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise Refused(f"{path!r} is no absolute path without ..")
    return path


def _socket_path(path: str) -> str:
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise Refused(f"{path!r} is longer than a unix socket's path may be")
    return _path(path)
