"""What is asked of a Firecracker, step by step, so that the fake and the real one can be compared answer by answer.

Each story begins with a fresh VMM in a folder of its own, which holds `kernel` (native/probe), `text` (no kernel),
`disk` (1 MiB), `log` (empty); paths are relative to it, so that every answer is the same wherever it lies. Its netns
has the taps `tap0` and `tap1`. What the real one answered is in refusals.json, made by record_refusals.py;
tests/contract/test_firecracker_api.py plays them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Body = Mapping[str, object]


@dataclass(frozen=True)
class Ask:
    """One call. `raw` goes out as it is, instead of a JSON body."""

    method: str
    path: str
    body: Body | None = None
    raw: str | None = None


@dataclass(frozen=True)
class Fresh:
    """The VMM is killed and another one started in the same folder; its sockets are removed first."""

    words: tuple[str, ...] = ()  # more of its command line


@dataclass(frozen=True)
class WaitExit:
    """The VMM ends by itself. Its exit status is part of what is compared."""


@dataclass(frozen=True)
class Change:
    """A file of the folder is damaged: a byte turned over, cut to a size, removed, or made empty."""

    file: str
    how: Literal["flip", "cut", "remove", "touch"]
    at: int = 0  # negative: from the end


Step = Ask | Fresh | WaitExit | Change
Story = tuple[Step, ...]


def get(path: str) -> Ask:
    return Ask("GET", path)


def put(path: str, body: Body | None = None, raw: str | None = None) -> Ask:
    return Ask("PUT", path, body, raw)


def patch(path: str, body: Body | None = None, raw: str | None = None) -> Ask:
    return Ask("PATCH", path, body, raw)


def disk(name: str = "root", **change: object) -> Ask:
    body = {"drive_id": name, "path_on_host": "disk", "is_root_device": name == "root", "is_read_only": True}
    return put(f"/drives/{name}", body | change)


def nic(name: str = "net", **change: object) -> Ask:
    return put(f"/network-interfaces/{name}", {"iface_id": name, "host_dev_name": "tap0"} | change)


def kernel(line: str = "idle") -> Ask:
    return put("/boot-source", {"kernel_image_path": "kernel", "boot_args": line})


def vsock(**change: object) -> Ask:
    return put("/vsock", {"guest_cid": 3, "uds_path": "v.sock"} | change)


def act(action: str) -> Ask:
    return put("/actions", {"action_type": action})


def create(state: str = "state", memory: str = "memory", **change: object) -> Ask:
    paths = {"snapshot_path": state, "mem_file_path": memory}
    return put("/snapshot/create", paths | change)


def load(state: str = "state", memory: str = "memory", **change: object) -> Ask:
    backend = {"backend_type": "File", "backend_path": memory}
    return put("/snapshot/load", {"snapshot_path": state, "mem_backend": backend} | change)


SIZE = put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 32})
START, PAUSE, RESUME, INFO = (
    act("InstanceStart"),
    patch("/vm", {"state": "Paused"}),
    patch("/vm", {"state": "Resumed"}),
    get("/"),
)
BUCKET = {"size": 1000, "refill_time": 100}
LIMIT = {"bandwidth": BUCKET}
DEVICES: Story = (SIZE, kernel(), disk(), nic(), vsock(), put("/entropy", {}))
BOOTED: Story = (*DEVICES, START)
SAVED: Story = (*BOOTED, PAUSE, create(), Fresh())

# Every body that we send, whole; what is missing, strange or too much in it is told by the stories below.
WHOLE: Mapping[tuple[str, str], Body] = {
    ("PUT", "/actions"): {"action_type": "InstanceStart"},
    ("PUT", "/boot-source"): {"kernel_image_path": "/kernel", "boot_args": "", "initrd_path": "/initrd"},
    ("PUT", "/drives/root"): {
        "drive_id": "root",
        "path_on_host": "/disk",
        "is_root_device": True,
        "is_read_only": True,
        "cache_type": "Unsafe",
        "io_engine": "Sync",
        "rate_limiter": {},
    },
    ("PATCH", "/drives/root"): {"drive_id": "root", "rate_limiter": {}},
    ("PUT", "/entropy"): {"rate_limiter": {}},
    ("PUT", "/logger"): {"log_path": "/log", "level": "Warning"},
    ("PUT", "/machine-config"): {
        "vcpu_count": 1,
        "mem_size_mib": 32,
        "smt": False,
        "track_dirty_pages": False,
        "huge_pages": "None",
    },
    ("PUT", "/metrics"): {"metrics_path": "/metrics"},
    ("PUT", "/mmds/config"): {"network_interfaces": [], "version": "V2", "ipv4_address": "169.254.169.254"},
    ("PUT", "/network-interfaces/net"): {
        "iface_id": "net",
        "host_dev_name": "tap0",
        "guest_mac": "02:00:00:00:00:01",
        "mtu": 1400,
        "rx_rate_limiter": {},
    },
    ("PATCH", "/network-interfaces/net"): {"iface_id": "net", "tx_rate_limiter": {}},
    ("PUT", "/serial"): {"serial_out_path": "/serial", "rate_limiter": BUCKET},
    ("PUT", "/snapshot/create"): {"snapshot_path": "/s", "mem_file_path": "/m", "snapshot_type": "Full"},
    ("PUT", "/snapshot/load"): {
        "snapshot_path": "/s",
        "mem_backend": {"backend_type": "File", "backend_path": "/m"},
        "resume_vm": False,
        "network_overrides": [],
        "vsock_override": {"uds_path": "/v"},
        "clock_realtime": False,
    },
    ("PATCH", "/vm"): {"state": "Paused"},
    ("PUT", "/vsock"): {"guest_cid": 3, "uds_path": "/v"},
}


def _strange() -> dict[str, Story]:
    """For each body: a field too many, each field missing, and each of a type that no field has."""
    stories: dict[str, Story] = {}
    for (method, path), body in WHOLE.items():
        asked = [Ask(method, path, {**body, "mood": "calm"}), Ask(method, path, raw="[]"), Ask(method, path, raw="{")]
        for field in body:
            less = {name: value for name, value in body.items() if name != field}
            typed: object = "calm" if not isinstance(body[field], str) else [1]
            asked += [Ask(method, path, {**less, field: typed}), Ask(method, path, {**less, field: -1})]
        asked.append(Ask(method, path, {}))
        stories[f"strange bodies of {method} {path}"] = tuple(asked)
    return stories


# Where a byte of the real one's state was turned over, what its reader stumbles upon depends on all the others: only
# that it could not read the state is the same each time.
LOOSE = frozenset({"a state with another byte", "a state of another kind", "a state cut short"})
LOOSE_END = "Failed to load snapshot state from file: "

STORIES: Mapping[str, Story] = {
    "fresh": (INFO, get("/version"), get("/machine-config"), get("/mmds")),
    "too early": (
        PAUSE,
        RESUME,
        create(),
        act("FlushMetrics"),
        act("SendCtrlAltDel"),
        patch("/drives/root", {"drive_id": "root"}),
        patch("/network-interfaces/net", {"iface_id": "net"}),
        START,
        INFO,
    ),
    "no such call": (
        get("/nope"),
        put("/nope", {}),
        put("/snapshot/eat", {}),
        put("/snapshot", {}),
        put("/actions"),
        patch("/vm"),
        put("/drives", {}),
        put("/drives/", {}),
        put("/network-interfaces", {}),
        Ask("GET", "/", {}),
        put("/vm", {}),
        get("/vm"),
        put("/drives/my-disk", {"drive_id": "my-disk", "is_root_device": False}),
        put("/network-interfaces/my-net", {"iface_id": "my-net", "host_dev_name": "tap0"}),
        disk(drive_id="other"),
        nic(iface_id="other"),
        patch("/drives/root", {"drive_id": "other"}),
        put("/vsock", raw="null"),
        put("/vsock", raw='{"guest_cid": 3, "uds_path": "/v"} more'),
        put("/vsock", raw='{"guest_cid": 3, "guest_cid": 4, "uds_path": "/v"}'),
        put("/actions", {"action_type": "Dance"}),
        patch("/vm", {"state": "Asleep"}),
    ),
    **_strange(),
    "a machine's size": (
        *(put("/machine-config", {"vcpu_count": n, "mem_size_mib": 32}) for n in (0, 33, 255, 256)),
        put("/machine-config", {"vcpu_count": 3, "mem_size_mib": 32, "smt": True}),
        put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 0}),
        put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 33, "huge_pages": "2M"}),
        put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 32, "huge_pages": "1G"}),
        SIZE,
        get("/machine-config"),
    ),
    "kernels": (
        put("/boot-source", {"kernel_image_path": "none"}),
        put("/boot-source", {"kernel_image_path": "kernel", "initrd_path": "none"}),
        put("/boot-source", {"kernel_image_path": "kernel", "boot_args": "x" * 3000}),
        put("/boot-source", {"kernel_image_path": "text"}),
        START,
        INFO,
    ),
    "disks": (
        disk(path_on_host="none"),
        disk(path_on_host="."),
        disk(),
        disk(),
        disk("second", is_root_device=True),
        disk("third", is_read_only=None),
        put("/drives/fourth", {"drive_id": "fourth", "is_root_device": False}),
        disk("fifth", socket="s"),
        disk("sixth", io_engine="Later"),
        disk("seventh", cache_type="Perhaps"),
        disk("eighth", rate_limiter=LIMIT),
        disk("ninth", rate_limiter={"bandwidth": {"size": 1}}),
        disk("tenth", rate_limiter={"bandwidth": {"size": 0, "refill_time": 0}}),
    ),
    "cards": (
        nic(host_dev_name="tapless"),
        nic(host_dev_name="a-name-that-is-too-long"),
        nic(),
        nic(),
        nic("second"),
        nic("third", host_dev_name="tap1", guest_mac="02:00:00:00:00:01"),
        nic("fourth", host_dev_name="tap1", guest_mac="02:00:00:00:00:01"),
        nic("fifth", guest_mac="02:00:00:00:00"),
        nic("sixth", guest_mac="nonsense"),
        nic("seventh", mtu=67),
        nic("eighth", mtu=65536),
    ),
    "metadata": (
        put("/mmds/config", {"network_interfaces": ["net"], "version": "V2"}),
        patch("/mmds", {"a": 1}),
        put("/mmds", {"a": {"b": 1}}),
        patch("/mmds", {"a": {"c": "2"}, "d": None}),
        get("/mmds"),
        put("/mmds", {"a": "x" * 51_190}),
        put("/mmds", {"a": "x" * 51_193}),
        patch("/mmds", {"b": "x" * 51_100}),
        put("/mmds", raw="[1]"),
        nic(),
        put("/mmds/config", {"network_interfaces": ["net"]}),
        put("/mmds/config", {"network_interfaces": ["net"], "version": "V1"}),
        put("/mmds/config", {"network_interfaces": ["net"], "version": "V2"}),
        put("/mmds/config", {"network_interfaces": ["net", "other"], "version": "V2"}),
        put("/mmds/config", {"network_interfaces": [], "version": "V2"}),
        put("/mmds/config", {"network_interfaces": ["net"], "version": "V3"}),
        put("/mmds/config", {"network_interfaces": ["net"], "version": "V2", "ipv4_address": "10.0.0.1"}),
        put("/mmds/config", {"network_interfaces": ["net"], "version": "V2", "ipv4_address": "nonsense"}),
        put("/mmds/config", {"network_interfaces": ["net"], "version": "V2", "imds_compat": True}),
    ),
    "little metadata": (
        Fresh(("--mmds-size-limit", "16")),
        put("/mmds", {"a": "12345678"}),
        put("/mmds", {"a": "123456789"}),
        patch("/mmds", {"b": 1}),
        get("/mmds"),
    ),
    "the vsock": (
        vsock(guest_cid=2),
        vsock(),
        vsock(),
        vsock(uds_path="none/v.sock"),
        vsock(uds_path="/" + "v" * 120),
        vsock(vsock_id="old"),
    ),
    "a stale vsock": (Change("v.sock", "touch"), vsock()),
    "a log and measures": (
        put("/logger", {"log_path": "none/log"}),
        put("/logger", {"log_path": "log", "level": "Loud"}),
        put("/logger", {"log_path": "log", "level": "warning"}),
        put("/logger", {}),
        put("/metrics", {"metrics_path": "none/metrics"}),
        put("/metrics", {"metrics_path": "metrics"}),
        put("/metrics", {"metrics_path": "metrics"}),
    ),
    "a serial console that is not there": (
        put("/serial", {"serial_out_path": "none"}),
        SIZE,
        kernel(),
        START,
    ),
    "too late": (
        *BOOTED,
        INFO,
        START,
        *DEVICES,
        put("/logger", {"level": "Info"}),
        put("/metrics", {"metrics_path": "metrics"}),
        put("/serial", {}),
        put("/mmds/config", {"network_interfaces": ["net"], "version": "V2"}),
        load(),
        patch("/machine-config", {"vcpu_count": 2}),
    ),
    "at any time": (
        *BOOTED,
        put("/mmds", {"a": 1}),
        patch("/mmds", {"b": 2}),
        get("/mmds"),
        get("/version"),
        get("/machine-config"),
        act("FlushMetrics"),
        patch("/drives/root", {"drive_id": "root", "rate_limiter": LIMIT}),
        patch("/drives/root", {"drive_id": "root", "path_on_host": "none"}),
        patch("/drives/other", {"drive_id": "other"}),
        patch("/network-interfaces/net", {"iface_id": "net", "rx_rate_limiter": LIMIT}),
        patch("/network-interfaces/other", {"iface_id": "other"}),
    ),
    "paused and resumed": (
        *BOOTED,
        create(),
        PAUSE,
        INFO,
        PAUSE,
        create("none/state"),
        create("state", "none/memory"),
        create(),
        create(),
        create(snapshot_type="Diff"),
        RESUME,
        INFO,
        RESUME,
        create(),
    ),
    "a guest that ends": (SIZE, kernel("stop"), START, WaitExit()),
    "restored": (*SAVED, load(), INFO, RESUME, INFO, load(), SIZE, START, PAUSE, create("again", "again.memory")),
    "restored and running": (*SAVED, load(resume_vm=True), INFO),
    "restored elsewhere": (
        *SAVED,
        load(
            network_overrides=[{"iface_id": "net", "host_dev_name": "tap1"}],
            vsock_override={"uds_path": "other.sock"},
            clock_realtime=True,
        ),
        INFO,
    ),
    "loaded too late": (*SAVED, SIZE, load(), INFO, START),
    "loaded after a look": (*SAVED, put("/logger", {"level": "Error"}), put("/serial", {}), load(), INFO),
    "loaded after metadata": (*SAVED, put("/mmds", {"a": 1}), load(), INFO),
    "two memories": (
        load(mem_file_path="memory"),
        put("/snapshot/load", {"snapshot_path": "/state"}),
        put(
            "/snapshot/load", {"snapshot_path": "/state", "mem_backend": {"backend_type": "Disk", "backend_path": "/m"}}
        ),
        INFO,
    ),
    "no state": (load("none"), WaitExit()),
    "no memory": (*SAVED, load("state", "none"), WaitExit()),
    "an empty state": (Change("state", "touch"), load(), WaitExit()),
    "a state that is none": (load("text"), WaitExit()),
    "a state cut short": (*SAVED, Change("state", "cut", 100), load(), WaitExit()),
    "a state with another byte": (*SAVED, Change("state", "flip", 300), load(), WaitExit()),
    "a state of another kind": (*SAVED, Change("state", "flip", 0), load(), WaitExit()),
    "a state with another sum": (*SAVED, Change("state", "flip", -1), load(), WaitExit()),
    "a memory cut short": (*SAVED, Change("memory", "cut", 4096), load(), WaitExit()),
    "no such disk": (*SAVED, Change("disk", "remove"), load(), WaitExit()),
    "a vsock still there": (*SAVED, Change("v.sock", "touch"), load(), WaitExit()),
    "no such tap": (
        *SAVED,
        load(network_overrides=[{"iface_id": "net", "host_dev_name": "tapless"}]),
        WaitExit(),
    ),
    "another card": (
        *SAVED,
        load(network_overrides=[{"iface_id": "other", "host_dev_name": "tap1"}]),
        WaitExit(),
    ),
    "a vsock where none was": (
        SIZE,
        kernel(),
        START,
        PAUSE,
        create(),
        Fresh(),
        load(vsock_override={"uds_path": "v.sock"}),
        WaitExit(),
    ),
}
