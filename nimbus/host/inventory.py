"""What one state root owns on this host right now, and what a run left behind. Reads only.

Everything is filtered by state root and by object prefix, because other agents (and other people's VMs)
come and go on the same host meanwhile. Called by the leak oracle of the tests and by `nimbus demo`, which
show its verdict.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from nimbus.host import cgroup, chroots, cpus, link, netns, nft, slots
from nimbus.host.mountinfo import parse_mountinfo
from nimbus.model.errors import HostFault
from nimbus.model.ids import state_root_id
from nimbus.model.placement import render_cpus

# Folders below the state root whose content belongs to VMs; images, logs and databases live on.
VM_FOLDERS = ("ledger", "vms")
VMM_NAMES = ("nimbus-keeper", "nimbus-init", "qemu-system", "firecracker", "jailer")
IDLE_TRIO_WORKER = "Trio thread"  # trio keeps idle workers for ten seconds; they hold nothing of a VM

Names = frozenset[str]


@dataclass(frozen=True)
class Territory:
    """Whose things are looked for."""

    state_root: Path
    runtime_dir: Path
    uid_base: int = slots.UID_BASE
    jailer_base: Path | None = None  # None: where an agent of that state root has its chroots by default

    def __post_init__(self) -> None:
        if not self.state_root.is_absolute():  # names are made of the path's text: another text, another owner
            raise HostFault(f"state root {self.state_root} must be an absolute path, as the agent was given it")

    @property
    def jails(self) -> Path:
        """Where jailers make the chroots of its VMs."""
        return self.jailer_base or self.state_root / "jailer"

    @property
    def prefix(self) -> str:
        """How the kernel objects of this state root begin."""
        return f"nb{state_root_id(str(self.state_root))}-"


@dataclass(frozen=True)
class Inventory:
    """Names by kind; a name says enough for a person to find the thing."""

    processes: Names = frozenset()
    fds: Names = frozenset()
    threads: Names = frozenset()
    netns: Names = frozenset()
    links: Names = frozenset()
    addresses: Names = frozenset()
    routes: Names = frozenset()
    nft_tables: Names = frozenset()
    cgroups: Names = frozenset()
    mounts: Names = frozenset()
    loop_devices: Names = frozenset()
    sockets: Names = frozenset()
    files: Names = frozenset()
    ledger: Names = frozenset()
    slots: Names = frozenset()
    cpus: Names = frozenset()


@dataclass(frozen=True, order=True)
class Leak:
    """One thing that is there now and was not there before."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    uid: int
    dead: bool  # ended, not yet reaped by its parent
    argv: tuple[str, ...]
    cgroup: str
    netns: int | None


def read_inventory(territory: Territory) -> Inventory:
    """Everything of this territory, and the caller's own descriptors, threads and descendants."""
    prefix = territory.prefix
    names = netns.list_netns(prefix)
    nft.ensure_context()
    links, addresses, routes = _read_links(prefix)
    return Inventory(
        processes=frozenset(_processes(territory, names)),
        fds=frozenset(_own_fds()),
        threads=frozenset(_own_threads()),
        netns=frozenset(names),
        links=links,
        addresses=addresses,
        routes=routes,
        nft_tables=frozenset(nft.list_tables(prefix)),
        cgroups=frozenset(cgroup.list_cgroups(prefix)),
        mounts=frozenset(_mounts(territory)),
        loop_devices=frozenset(_loop_devices(territory.state_root)),
        sockets=frozenset(_sockets(territory)),
        files=frozenset((*_files(territory.state_root / "vms"), *_chroots(territory))),
        ledger=frozenset(_files(territory.state_root / "ledger")),
        slots=frozenset(
            f"{slot.index} held by {slot.owner}"
            for slot in slots.list_slots(territory.runtime_dir)
            if slot.owner.startswith(prefix)
        ),
        cpus=frozenset(
            f"{render_cpus(ticket.cpus)} held by {ticket.owner}"
            for ticket in cpus.list_cpus(territory.runtime_dir)
            if ticket.owner.startswith(prefix)
        ),
    )


def diff(before: Inventory, after: Inventory) -> tuple[Leak, ...]:
    """What is there now and was not there before, by kind and name. What has gone is no leak."""
    return tuple(
        Leak(kind.name, name)
        for kind in fields(Inventory)
        for name in sorted(getattr(after, kind.name) - getattr(before, kind.name))
    )


def leftovers(territory: Territory) -> tuple[Leak, ...]:
    """All that VMs of this territory own now: what must be nothing when none runs. The caller itself is left out."""
    found = read_inventory(territory)
    mine = {"fds", "threads", "processes"}
    leaks = [leak for leak in diff(Inventory(), found) if leak.kind not in mine]
    names = netns.list_netns(territory.prefix)
    return (*(Leak("processes", name) for name in sorted(_vm_processes(territory, names))), *leaks)


def parse_unix_sockets(table: str) -> Iterator[str]:
    """Paths in the text of /proc/net/unix; nameless and abstract sockets have none."""
    for line in table.splitlines()[1:]:
        parts = line.split(maxsplit=7)
        if len(parts) == 8 and parts[7].startswith("/"):
            yield parts[7]


def _processes(territory: Territory, names: Iterable[str]) -> Iterator[str]:
    """VMMs and keepers of this territory, wherever they hang by now, and our own descendants."""
    everything = _read_processes()
    yield from _describe(p for p in everything.values() if _is_descendant(p, everything))
    yield from _vm_processes(territory, names, everything)


def _vm_processes(
    territory: Territory, names: Iterable[str], everything: Mapping[int, _Process] | None = None
) -> Iterator[str]:
    held = [s for s in slots.list_slots(territory.runtime_dir) if s.owner.startswith(territory.prefix)]
    uids = {territory.uid_base + slot.index for slot in held}
    spaces = set()
    for name in names:
        with suppress(FileNotFoundError):
            spaces.add(os.stat(netns.netns_path(name)).st_ino)
    root = str(territory.state_root)
    found = everything if everything is not None else _read_processes()
    yield from _describe(
        process
        for process in found.values()
        if not process.dead  # a dead orphan holds nothing, and reaping it is the duty of the host's init
        and (
            f"/{territory.prefix}" in process.cgroup
            or process.uid in uids
            or (process.netns is not None and process.netns in spaces)
            or (_is_vmm(process.argv) and any(root in word for word in process.argv))
        )
    )


def _describe(processes: Iterable[_Process]) -> Iterator[str]:
    for process in processes:
        yield f"pid {process.pid} {' '.join(process.argv)[:120] or '(no command line)'}"


def _is_vmm(argv: tuple[str, ...]) -> bool:
    return bool(argv) and os.path.basename(argv[0]).startswith(VMM_NAMES)


def _is_descendant(process: _Process, everything: Mapping[int, _Process]) -> bool:
    parent = process.parent
    while parent in everything and parent != os.getpid():
        parent = everything[parent].parent
    return parent == os.getpid()


def _read_processes() -> dict[int, _Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                found[int(name)] = _read_process(int(name))
    return found


def _read_process(pid: int) -> _Process:
    folder = Path("/proc", str(pid))
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
    space = None
    with suppress(PermissionError, FileNotFoundError):
        space = os.stat(folder / "ns" / "net").st_ino
    return _Process(
        pid=pid,
        parent=int(status["PPid"]),
        uid=int(status["Uid"].split()[0]),
        dead=status["State"].startswith("Z"),
        argv=tuple(word.decode(errors="replace") for word in (folder / "cmdline").read_bytes().split(b"\0") if word),
        cgroup=(folder / "cgroup").read_text(),
        netns=space,
    )


def _own_fds() -> Iterator[str]:
    with os.scandir("/proc/self/fd") as entries:
        numbers = [entry.name for entry in entries]
    for number in numbers:
        with suppress(FileNotFoundError):  # the descriptor of that very listing
            yield f"fd {number} -> {os.readlink(f'/proc/self/fd/{number}')}"


def _own_threads() -> Iterator[str]:
    named = {thread.native_id: thread.name for thread in threading.enumerate()}
    for tid in os.listdir("/proc/self/task"):
        name = named.get(int(tid))
        if name is not None and name.startswith(IDLE_TRIO_WORKER):
            continue
        yield f"thread {tid} {name or '(not of Python)'}"


def _read_links(prefix: str) -> tuple[Names, Names, Names]:
    """Links that bear our prefix, and the addresses and routes on them."""
    addresses, routes = set(), set()
    with link.open_netlink() as route:
        names = {m["index"]: m.get_attr("IFLA_IFNAME") for m in route.get_links()}
        ours = {index: name for index, name in names.items() if name.startswith(prefix)}
        for message in route.get_addr(family=socket.AF_INET):
            if message["index"] in ours:
                address = message.get_attr("IFA_ADDRESS")
                addresses.add(f"{address}/{message['prefixlen']} on {ours[message['index']]}")
        for message in route.get_routes(family=socket.AF_INET):
            out = message.get_attr("RTA_OIF")
            if out in ours:
                target = f"{message.get_attr('RTA_DST') or 'default'}/{message['dst_len']}"
                routes.add(f"{target} by {ours[out]} in table {message.get_attr('RTA_TABLE')}")
    return frozenset(ours.values()), frozenset(addresses), frozenset(routes)


def _mounts(territory: Territory) -> Iterator[str]:
    spaces = str(netns.NETNS_DIR / territory.prefix)
    for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_text()):
        if _is_below(mount.point, territory.state_root) or mount.point.startswith(spaces):
            yield mount.point


def _loop_devices(state_root: Path) -> Iterator[str]:
    for device in Path("/sys/block").glob("loop*"):
        with suppress(FileNotFoundError, OSError):  # no file behind it: the device is free
            backing = (device / "loop" / "backing_file").read_text().strip()
            if _is_below(backing.removesuffix(" (deleted)"), state_root):
                yield f"/dev/{device.name} on {backing}"


def _sockets(territory: Territory) -> Iterator[str]:
    for path in parse_unix_sockets(Path("/proc/net/unix").read_text(errors="replace")):
        if any(_is_below(path, territory.state_root / folder) for folder in VM_FOLDERS):
            yield path


def _files(folder: Path) -> Iterator[str]:
    """Every file and folder below `folder`; symlinks are named, not followed."""
    for place, folders, names in os.walk(folder):
        yield from (os.path.join(place, name) for name in (*folders, *names))


def _chroots(territory: Territory) -> Iterator[str]:
    for name in chroots.list_chroots(territory.jails, territory.prefix):
        for folder in territory.jails.glob(f"*/{name}"):
            yield str(folder)
            yield from _files(folder)


def _is_below(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")
