"""The fake's devices: kernel, disks, cards, vsock and console, really opened where the real one opens them.

So a tap that is held, a disk that is missing and a stale socket are refused by the host's kernel, in the real one's
words. Called by vm.py.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.fakes import kernel

_ELF = b"\x7fELF"
_MAX_LINE = 2048
_MAX_SOCKET_PATH = 107
# As the C library of the real one names them (musl), where Debian's does otherwise.
_STRERROR = {16: "Resource busy", 40: "Symbolic link loop", 98: "Address in use"}


class Refusal(Exception):
    """What is asked cannot be had; the text is the real one's."""


def name_error(error: OSError) -> str:
    number = error.errno or 0
    return f"{_STRERROR.get(number, os.strerror(number))} (os error {number})"


@dataclass
class Devices:
    """What a VM has. Descriptors by the name of what they are of."""

    boot: dict[str, Any] = field(default_factory=dict)
    drives: dict[str, dict[str, Any]] = field(default_factory=dict)
    nics: dict[str, dict[str, Any]] = field(default_factory=dict)
    vsock: dict[str, Any] | None = None
    entropy: dict[str, Any] | None = None
    serial: dict[str, Any] = field(default_factory=dict)
    mmds: dict[str, Any] | None = None
    listener: socket.socket | None = None
    _open: dict[str, int] = field(default_factory=dict)

    def set(self, name: str, body: dict[str, Any]) -> None:
        """Configure one device before the start. Raises Refusal."""
        match name:
            case "boot-source":
                self._set_boot(body)
            case "drives":
                self._set_drive(body)
            case "network-interfaces":
                self._set_nic(body)
            case "vsock":
                self._set_vsock(body)
            case "entropy":
                self.entropy = body
            case "serial":
                self.serial = body
            case "logger":
                if body.get("log_path"):
                    self.create_file(body["log_path"], "Logger error: Failed to open target file: {}")

    def update(self, name: str, body: dict[str, Any]) -> None:
        """Change a device of a running VM. Raises Refusal."""
        missing = "Failed perform action on device: Device not found"
        if name == "network-interfaces":
            if body["iface_id"] not in self.nics:
                raise Refusal(f"Network config error: Unable to update the net device: {missing}")
            return
        failed = "Drive config error: Unable to patch the block device: {} Please verify the request arguments."
        if body["drive_id"] not in self.drives:
            raise Refusal(failed.format(missing))
        if body.get("path_on_host") is not None:
            drive = self.drives[body["drive_id"]] | {"path_on_host": body["path_on_host"]}
            self._open_drive(drive, failed.format("Block: {}"))

    def describe(self) -> dict[str, Any]:
        """For GET /vm/config."""
        return {
            "boot-source": self.boot,
            "drives": list(self.drives.values()),
            "network-interfaces": list(self.nics.values()),
            "vsock": self.vsock,
            "entropy": self.entropy,
            "mmds-config": self.mmds,
        }

    def save(self) -> dict[str, Any]:
        return {"drives": self.drives, "nics": self.nics, "vsock": self.vsock, "mmds": self.mmds}

    def restore(self, saved: dict[str, Any]) -> None:
        """Open again what a snapshot names. Raises Refusal."""
        failed = "Failed to build microVM from snapshot: Failed to restore devices: Error restoring MMIO devices: {}"
        for drive in saved["drives"].values():
            self.drives[drive["drive_id"]] = drive
            self._open_drive(drive, failed.format("Block: {}"))
        for nic in saved["nics"].values():
            self.nics[nic["iface_id"]] = nic
            self._open_nic(nic, failed.format("Net: Failed to create a network device: {}"))
        if saved["vsock"] is not None:
            self.vsock = saved["vsock"]
            self._listen(saved["vsock"]["uds_path"], failed.format("VsockUnixBackend: {}"))
        self.mmds = saved["mmds"]

    def check_kernel(self) -> None:
        if not self.boot:
            raise Refusal("Start microvm error: Cannot start microvm without kernel configuration.")
        if os.pread(self._open["kernel"], 4, 0) != _ELF:
            raise Refusal(
                "Start microvm error: System configuration error: Cannot load kernel due to invalid memory"
                " configuration or invalid kernel image: Kernel Loader: failed to load ELF kernel image: Kernel Loader:"
                " Invalid Elf magic number"
            )

    def open_console(self) -> int | None:
        """Where the guest prints; None for our own stdout."""
        path = self.serial.get("serial_out_path")
        if path is None:
            return None
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)

    def create_file(self, path: str, failed: str) -> None:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise Refusal(failed.format(name_error(error))) from None

    def _set_boot(self, body: dict[str, Any]) -> None:
        failed = "Boot source error: {}"
        if len(body.get("boot_args") or "") > _MAX_LINE:
            raise Refusal(failed.format("The kernel command line is invalid: Invalid cmdline capacity provided."))
        try:
            self._keep("kernel", os.open(body["kernel_image_path"], os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise Refusal(failed.format(f"The kernel file cannot be opened: {name_error(error)}")) from None
        if body.get("initrd_path") is not None:
            try:
                self._keep("initrd", os.open(body["initrd_path"], os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                why = "The initrd file cannot be opened due to invalid path or invalid permissions. "
                raise Refusal(failed.format(why + name_error(error))) from None
        self.boot = body

    def _set_drive(self, body: dict[str, Any]) -> None:
        roots = {name for name, drive in self.drives.items() if drive["is_root_device"]}
        if body["is_root_device"] and roots - {body["drive_id"]}:
            raise Refusal("Drive config error: A root block device already exists!")
        failed = "Drive config error: Unable to create the virtio block device: {}"
        if (body.get("path_on_host") is None) or body.get("socket") is not None:
            raise Refusal(failed.format("Invalid block config."))
        self._open_drive(body, failed)
        self.drives[body["drive_id"]] = body

    def _open_drive(self, drive: dict[str, Any], failed: str) -> None:
        flags = os.O_RDONLY if drive.get("is_read_only") else os.O_RDWR
        try:
            self._keep(f"drive {drive['drive_id']}", os.open(drive["path_on_host"], flags | os.O_CLOEXEC))
        except OSError as error:
            why = f"Virtio backend error: Error manipulating the backing file: {name_error(error)}"
            raise Refusal(failed.format(f"{why} {drive['path_on_host']}")) from None

    def _set_nic(self, body: dict[str, Any]) -> None:
        mac, name = body.get("guest_mac"), body["iface_id"]
        if mac is not None and any(mac == nic.get("guest_mac") for other, nic in self.nics.items() if other != name):
            raise Refusal(f"Network config error: The MAC address is already in use: {mac}")
        self._close(f"nic {name}")
        self._open_nic(body, "Network config error: Could not create the network device: {}")
        self.nics[name] = body

    def _open_nic(self, nic: dict[str, Any], failed: str) -> None:
        tap = nic["host_dev_name"]
        if len(tap) > 15:
            raise Refusal(failed.format("Open tap device failed: Invalid interface name"))
        try:
            self._keep(f"nic {nic['iface_id']}", kernel.open_tap(tap))
        except OSError as error:
            why = f"Open tap device failed: Error while creating ifreq structure: {name_error(error)}."
            why += f" Invalid TUN/TAP Backend provided by {tap}. Check our documentation on setting up the network"
            raise Refusal(failed.format(f"{why} devices.")) from None

    def _set_vsock(self, body: dict[str, Any]) -> None:
        if self.listener is not None and self.vsock is not None:
            self.listener.close()
            self.listener = None
            with suppress(FileNotFoundError):
                os.unlink(self.vsock["uds_path"])
        self._listen(body["uds_path"], "Vsock config error: Cannot create backend for vsock device: {}")
        self.vsock = body

    def _listen(self, path: str, failed: str) -> None:
        failed = failed.format("Error binding to the host-side Unix socket: {}")
        if len(path.encode()) > _MAX_SOCKET_PATH:
            raise Refusal(failed.format("path must be shorter than SUN_LEN"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(path)
        except OSError as error:
            listener.close()
            raise Refusal(failed.format(name_error(error))) from None
        listener.listen()
        self.listener = listener

    def _keep(self, name: str, fd: int) -> None:
        self._close(name)
        self._open[name] = fd

    def _close(self, name: str) -> None:
        fd = self._open.pop(name, None)
        if fd is not None:
            os.close(fd)
