"""The fake's state: what it was configured with, what it holds open, and what it answers to each call.

Knows no HTTP and no guest: the Guest that it is given is started, stopped and resumed. Texts are those of Firecracker
1.16.1, held to refusals.json by tests/contract/test_firecracker_api.py. Called by fake_firecracker.py, on its main
thread.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.fakes.bodies import BODIES
from tests.fakes.devices import Devices, Refusal
from tests.fakes.snapshot import read_snapshot, write_snapshot
from tests.fakes.typedjson import BadBody, read_body

MAX_METADATA_BYTES = 51_200
TOO_EARLY = "The requested operation is not supported before starting the microVM."
TOO_LATE = "The requested operation is not supported after starting the microVM."
BAD_JSON = "An error occurred when deserializing the json body of a request: {}."
NO_METADATA = "MMDS error: The MMDS data store is not initialized."
_SMALLEST: dict[str, Any] = {
    "vcpu_count": 1,
    "mem_size_mib": 128,
    "smt": False,
    "track_dirty_pages": False,
    "huge_pages": "None",
}
_NAME = re.compile(r"[A-Za-z0-9_]+")
_NAMED = frozenset({"drives", "network-interfaces"})
_NESTED = frozenset({"snapshot", "mmds"})
_POST_ONLY = frozenset(
    {("PUT", "snapshot/create"), ("PATCH", "vm"), ("PATCH", "drives"), ("PATCH", "network-interfaces")}
)


@dataclass(frozen=True)
class Reply:
    """Status and body of an answer. `fatal`: the process ends with that status once this was said."""

    status: int
    value: object = None
    deprecated: bool = False
    fatal: int | None = None


DONE = Reply(204)


def refuse(text: str, *, status: int = 400, fatal: int | None = None) -> Reply:
    return Reply(status, {"fault_message": text}, fatal=fatal)


class Guest(Protocol):
    """What runs in the VM."""

    def build(self, vcpus: int, line: str, console: int | None) -> None:
        """Its vCPUs exist and do not run yet."""

    @property
    def count(self) -> int: ...
    @count.setter
    def count(self, value: int) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass
class Vm:
    """One microVM, from nothing to running."""

    instance_id: str
    version: str
    guest: Guest
    devices: Devices = field(default_factory=Devices)
    state: str = "Not started"
    machine: dict[str, Any] = field(default_factory=lambda: dict(_SMALLEST))
    line: str = ""
    metadata: Any = None
    metadata_limit: int = MAX_METADATA_BYTES
    has_metadata: bool = False
    measured: bool = False
    configured: bool = False  # with anything that a snapshot would bring along

    def answer(self, method: str, path: str, text: str | None) -> Reply:
        """What is said to one call; `text` is its body."""
        try:
            return self._route(method, path.lstrip("/").split("/"), text)
        except BadBody as error:
            return refuse(BAD_JSON.format(error))
        except Refusal as error:
            return refuse(str(error))

    def _route(self, method: str, parts: list[str], text: str | None) -> Reply:
        if method == "GET":
            return refuse("GET request cannot have a body.") if text is not None else self._tell("/".join(parts))
        if text is None:
            return refuse(f"Empty {method} request.")
        name = "/".join(parts[:2]) if parts[0] in _NESTED else parts[0]
        if name == "mmds":
            return self._set_metadata(method, json.loads(text))
        if (method, name) not in BODIES:
            return _refuse_path(method, name)
        named = _check_name(parts) if name in _NAMED else None
        body = read_body(text, BODIES[method, name])
        _check_body(name, named, body)
        return self._before(method, name, body) if self.state == "Not started" else self._after(method, name, body)

    def _tell(self, path: str) -> Reply:
        told: Mapping[str, Callable[[], object]] = {
            "": lambda: {
                "id": self.instance_id,
                "state": self.state,
                "vmm_version": self.version,
                "app_name": "Firecracker",
            },
            "version": lambda: {"firecracker_version": self.version},
            "machine-config": lambda: self.machine,
            "vm/config": lambda: {"machine-config": self.machine, **self.devices.describe()},
        }
        if path == "mmds":
            if self.state != "Not started" and not self.has_metadata:
                return refuse(NO_METADATA)
            return Reply(200, self.metadata or {})
        if path not in told:
            return _refuse_path("GET", path.partition("/")[0])
        return Reply(200, told[path]())

    def _set_metadata(self, method: str, value: Any) -> Reply:
        if self.state == "Not started":
            self.has_metadata = True
        if not self.has_metadata or (method == "PATCH" and self.metadata is None):
            return refuse(NO_METADATA)
        value = _merge(self.metadata, value) if method == "PATCH" else value
        if len(json.dumps(value, separators=(",", ":"))) > self.metadata_limit:
            return refuse("MMDS limit exceeded error: The MMDS patch request doesn't fit.", status=413)
        self.metadata = value
        return DONE

    def _before(self, method: str, name: str, body: dict[str, Any]) -> Reply:
        if (method, name) in _POST_ONLY:
            return refuse(TOO_EARLY)
        match name:
            case "snapshot/load":
                return self._load(body)
            case "actions":
                return self._start() if body["action_type"] == "InstanceStart" else refuse(TOO_EARLY)
            case "metrics":
                return self._measure(body["metrics_path"])
            case "mmds/config":
                return self._serve_metadata(body)
        return self._configure(method, name, body)

    def _configure(self, method: str, name: str, body: dict[str, Any]) -> Reply:
        self.configured = self.configured or name not in {"logger", "serial"}
        if name == "machine-config":
            self.machine = _size(method, self.machine, body)
        else:
            self.devices.set(name, body)
        return Reply(204, deprecated=name == "vsock" and body.get("vsock_id") is not None)

    def _after(self, method: str, name: str, body: dict[str, Any]) -> Reply:
        if name == "snapshot/create":
            return self._create(body)
        if name == "vm":
            return self._turn(body["state"])
        if name == "actions" and body["action_type"] != "InstanceStart":
            return DONE
        if method == "PATCH" and name in _NAMED:
            self.devices.update(name, body)
            return DONE
        if name in _NAMED:
            return refuse("PCI is not enabled")
        return refuse(TOO_LATE)

    def _measure(self, path: str) -> Reply:
        failed = "Metrics error: Cannot initialize the metrics system due to bad user input: {}"
        if self.measured:
            return refuse(failed.format("Reinitialization of metrics not allowed."))
        self.devices.create_file(path, failed)
        self.measured = True
        return DONE

    def _serve_metadata(self, body: dict[str, Any]) -> Reply:
        self.configured = True
        names, address = body["network_interfaces"], body.get("ipv4_address")
        wrong = None
        if not names:
            wrong = "The list of network interface IDs that allow forwarding MMDS requests is empty."
        elif not set(names) <= set(self.devices.nics):
            wrong = (
                "The list of network interface IDs provided contains at least one ID that does not correspond to any"
                " existing network interface."
            )
        elif address is not None and not ipaddress.IPv4Address(address).is_link_local:
            wrong = "The MMDS IPv4 address is not link local."
        if wrong is not None:
            return Reply(400, {"fault_message": f"MMMDS config error: {wrong}"}, deprecated=body.get("version") != "V2")
        self.has_metadata = True
        self.devices.mmds = body
        return Reply(204, deprecated=body.get("version", "V1") == "V1")

    def _start(self) -> Reply:
        self.devices.check_kernel()
        self._build(self.devices.boot.get("boot_args") or "")
        return self._turn("Resumed")

    def _build(self, line: str) -> None:
        self.line = line
        self.guest.build(int(self.machine["vcpu_count"]), line, self.devices.open_console())
        self.state = "Paused"

    def _turn(self, wanted: str) -> Reply:
        if wanted == "Paused":
            self.guest.pause()
        else:
            self.guest.resume()
        self.state = "Paused" if wanted == "Paused" else "Running"
        return DONE

    def _create(self, body: dict[str, Any]) -> Reply:
        if self.state != "Paused":
            return refuse(
                "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable"
                " while running"
            )
        saved = {
            "machine": self.machine,
            "devices": self.devices.save(),
            "has_metadata": self.has_metadata,
            "line": self.line,
            "count": self.guest.count,
        }
        write_snapshot(body["snapshot_path"], body["mem_file_path"], saved, self.machine["mem_size_mib"])
        return DONE

    def _load(self, body: dict[str, Any]) -> Reply:
        if self.configured:
            return refuse(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
            )
        memory = body.get("mem_file_path") or body["mem_backend"]["backend_path"]
        deprecated = body.get("mem_file_path") is not None or body.get("enable_diff_snapshots") is True
        try:
            saved = read_snapshot(body["snapshot_path"], memory, body)
            self.machine = saved["machine"]
            self.has_metadata = saved["has_metadata"]
            self.devices.restore(saved["devices"])
        except Refusal as error:
            return refuse(f"Load snapshot error: Failed to restore from snapshot: {error}", fatal=1)
        self._build(saved["line"])
        self.guest.count = saved["count"]
        if body.get("resume_vm"):
            self._turn("Resumed")
        return Reply(204, deprecated=deprecated)


def _size(method: str, before: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in body.items() if value is not None}
    wanted = (before if method == "PATCH" else _SMALLEST) | told
    vcpus, mib = wanted["vcpu_count"], wanted["mem_size_mib"]
    if not 1 <= vcpus <= 32 or (wanted["smt"] and vcpus > 1 and vcpus % 2):
        raise Refusal(
            "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even"
            " number if SMT is enabled."
        )
    if mib == 0 or (wanted["huge_pages"] == "2M" and mib % 2):
        raise Refusal(
            "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."
        )
    return wanted


def _refuse_path(method: str, name: str) -> Reply:
    if name == "snapshot":
        return refuse("Missing snapshot operation type.")
    said = f"/{name}" if name.startswith("snapshot/") else name
    return refuse(f"Invalid request method and/or path: {method} {said}.")


def _check_name(parts: list[str]) -> str:
    if len(parts) < 2 or not parts[1]:
        raise Refusal("The ID cannot be empty.")
    if not _NAME.fullmatch(parts[1]):
        raise Refusal("API Resource IDs can only contain alphanumeric characters and underscores.")
    return parts[1]


def _check_body(name: str, named: str | None, body: dict[str, Any]) -> None:
    if name == "drives" and body["drive_id"] != named:
        raise Refusal("The id from the path does not match the id from the body!")
    if name == "network-interfaces" and body["iface_id"] != named:
        raise Refusal(f"The id from the path [{named}] does not match the id from the body [{body['iface_id']}]!")
    if name == "snapshot/load":
        backend, plain = body.get("mem_backend") is not None, body.get("mem_file_path") is not None
        if backend and plain:
            raise BadBody("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")
        if not backend and not plain:
            raise BadBody("missing field: either `mem_backend` or `mem_file_path` is required")


def _merge(old: Any, new: Any) -> Any:
    """RFC 7396."""
    if not isinstance(new, dict):
        return new
    merged = dict(old) if isinstance(old, dict) else {}
    for name, value in new.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged
