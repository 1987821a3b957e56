"""What each call of the API takes, in the order in which the real Firecracker 1.16 lists it. Called by vm.py."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from tests.fakes.typedjson import Checked, Kind, Sequence, Struct, Variant

TEXT, PATH, BOOL = "a string", "path string", "a boolean"
_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_LEVELS = frozenset({"off", "error", "warn", "warning", "info", "debug", "trace"})


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


MAC = Checked(TEXT, lambda text: _MAC.fullmatch(text) is not None, "The provided MAC address is invalid.")
ADDRESS = Checked("IPv4 address", _is_address, "invalid IPv4 address syntax", late=False)
LEVEL = Checked(TEXT, lambda text: text.lower() in _LEVELS, "Invalid LevelFilter")


def _struct(name: str, fields: Mapping[str, Kind], *required: str, skipped: int = 0) -> Struct:
    return Struct(name, fields, frozenset(fields) - set(required), skipped)


BUCKET = _struct(
    "TokenBucketConfig", {"size": "u64", "one_time_burst": "u64", "refill_time": "u64"}, "size", "refill_time"
)
LIMIT = _struct("RateLimiterConfig", {"bandwidth": BUCKET, "ops": BUCKET})
_MACHINE: dict[str, Kind] = {
    "vcpu_count": "u8",
    "mem_size_mib": "usize",
    "smt": BOOL,
    "cpu_template": Variant(("C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None")),
    "track_dirty_pages": BOOL,
    "huge_pages": Variant(("None", "2M")),
}
_DRIVE: dict[str, Kind] = {
    "drive_id": TEXT,
    "partuuid": TEXT,
    "is_root_device": BOOL,
    "cache_type": Variant(("Unsafe", "Writeback")),
    "is_read_only": BOOL,
    "path_on_host": TEXT,
    "rate_limiter": LIMIT,
    "io_engine": Variant(("Async", "Sync")),
    "socket": TEXT,
}
_NIC: dict[str, Kind] = {
    "iface_id": TEXT,
    "host_dev_name": TEXT,
    "guest_mac": MAC,
    "mtu": "u16",
    "rx_rate_limiter": LIMIT,
    "tx_rate_limiter": LIMIT,
}
_OVERRIDE = _struct("NetworkOverride", {"iface_id": TEXT, "host_dev_name": TEXT}, "iface_id", "host_dev_name")
_LOAD: dict[str, Kind] = {
    "snapshot_path": PATH,
    "mem_file_path": PATH,
    "mem_backend": _struct(
        "MemBackendConfig",
        {"backend_type": Variant(("File", "Uffd")), "backend_path": PATH},
        "backend_type",
        "backend_path",
    ),
    "enable_diff_snapshots": BOOL,
    "track_dirty_pages": BOOL,
    "resume_vm": BOOL,
    "network_overrides": Sequence(_OVERRIDE),
    "vsock_override": _struct("VsockOverride", {"uds_path": TEXT}, "uds_path"),
    "clock_realtime": BOOL,
}

BODIES: Mapping[tuple[str, str], Struct] = {
    ("PUT", "actions"): _struct(
        "ActionBody",
        {"action_type": Variant(("FlushMetrics", "InstanceStart", "SendCtrlAltDel"))},
        "action_type",
    ),
    ("PUT", "boot-source"): _struct(
        "BootSourceConfig", {"kernel_image_path": TEXT, "initrd_path": TEXT, "boot_args": TEXT}, "kernel_image_path"
    ),
    ("PUT", "drives"): _struct("BlockDeviceConfig", _DRIVE, "drive_id", "is_root_device"),
    ("PATCH", "drives"): _struct(
        "BlockDeviceUpdateConfig", {"drive_id": TEXT, "path_on_host": TEXT, "rate_limiter": LIMIT}, "drive_id"
    ),
    ("PUT", "entropy"): _struct("EntropyDeviceConfig", {"rate_limiter": LIMIT}),
    ("PUT", "logger"): _struct(
        "LoggerConfig",
        {"log_path": PATH, "level": LEVEL, "show_level": BOOL, "show_log_origin": BOOL, "module": TEXT},
    ),
    ("PUT", "machine-config"): _struct("MachineConfig", _MACHINE, "vcpu_count", "mem_size_mib"),
    ("PATCH", "machine-config"): _struct("MachineConfigUpdate", _MACHINE, skipped=6),
    ("PUT", "metrics"): Struct("MetricsConfig", {"metrics_path": PATH}, lax=True),
    ("PUT", "mmds/config"): _struct(
        "MmdsConfig",
        {
            "version": Variant(("V1", "V2")),
            "network_interfaces": Sequence(TEXT),
            "ipv4_address": ADDRESS,
            "imds_compat": BOOL,
        },
        "network_interfaces",
        skipped=1,
    ),
    ("PUT", "network-interfaces"): _struct("NetworkInterfaceConfig", _NIC, "iface_id", "host_dev_name"),
    ("PATCH", "network-interfaces"): _struct(
        "NetworkInterfaceUpdateConfig",
        {"iface_id": TEXT, "rx_rate_limiter": LIMIT, "tx_rate_limiter": LIMIT},
        "iface_id",
    ),
    ("PUT", "serial"): _struct("SerialConfig", {"serial_out_path": PATH, "rate_limiter": BUCKET}),
    ("PUT", "snapshot/create"): _struct(
        "CreateSnapshotParams",
        {"snapshot_type": Variant(("Diff", "Full")), "snapshot_path": PATH, "mem_file_path": PATH},
        "snapshot_path",
        "mem_file_path",
        skipped=1,
    ),
    ("PUT", "snapshot/load"): _struct("LoadSnapshotConfig", _LOAD, "snapshot_path"),
    ("PATCH", "vm"): _struct("Vm", {"state": Variant(("Paused", "Resumed"))}, "state"),
    ("PUT", "vsock"): _struct(
        "VsockDeviceConfig",
        {"vsock_id": TEXT, "guest_cid": "u32", "uds_path": TEXT},
        "guest_cid",
        "uds_path",
        skipped=1,
    ),
}
