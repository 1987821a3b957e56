"""What a VMM can see and do, read back from the kernel: identity, namespaces, jail, limits, descriptors."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from nimbus.host import native
from nimbus.host_agent.keeper import Keeper, spawn_keeper
from nimbus.wire.keeper import Bind, Jail, KeeperFailed, KeeperSpec
from tests.native.conftest import Room, wait_console

pytestmark = pytest.mark.root
VM_UID, VM_GID = 261_001, 261_002
SYS_RT_SIGACTION = 13  # of x86_64, which is all that Nimbus runs on
SIGCANCEL = 32  # glibc's own, and beyond the reach of its sigaction()
SYSTEM = tuple(Bind(path, path) for path in ("/usr", "/lib", "/lib64", "/bin") if os.path.exists(path))


@dataclass(frozen=True)
class Cell:
    """A room with a jail: one folder that the VMM may write, one that it may only read."""

    room: Room
    own: Path
    shared: Path

    def spec(self, script: str, *binds: Bind) -> KeeperSpec:
        jail = Jail(
            str(self.room.folder / "jail"),
            (*SYSTEM, Bind(str(self.own), "/vm/own", writable=True), Bind(str(self.shared), "/vm/shared"), *binds),
            ("null", "net/tun"),
        )
        return replace(self.room.shell(script), uid=VM_UID, gid=VM_GID, jail=jail)


@pytest.fixture
def cell(room: Room) -> Cell:
    for name in ("own", "shared", "jail"):
        (room.folder / name).mkdir(mode=0o755)
    os.chown(room.folder / "own", VM_UID, VM_GID)
    (room.folder / "shared" / "base").write_text("base image")
    (room.folder / "shared" / "base").chmod(0o666)
    return Cell(room, room.folder / "own", room.folder / "shared")


def read(path: str) -> str:
    return Path(path).read_text()


def list_targets(pid: int) -> list[str]:
    """What the descriptors of a process point to."""
    return [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]


async def run_to_end(spec: KeeperSpec) -> str:
    """What the VMM printed."""
    async with await spawn_keeper(spec) as keeper:
        await keeper.wait_exit()
    return read(f"{spec.folder}/console.tail")


def read_status(pid: int) -> dict[str, str]:
    lines = read(f"/proc/{pid}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def vmm_pid(keeper: Keeper) -> int:
    return (await keeper.vmm_identity()).pid


async def test_the_vmm_has_its_own_uid_and_no_way_to_more(cell: Cell) -> None:
    async with await spawn_keeper(cell.spec("exec sleep 1000")) as keeper:
        status = read_status(await vmm_pid(keeper))
    assert status["Uid"].split() == [str(VM_UID)] * 4
    assert status["Gid"].split() == [str(VM_GID)] * 4
    assert status["Groups"] == ""
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("SigBlk", "SigIgn")} == {0}


async def test_signals_that_make_left_ignored_are_the_vmms_again(cell: Cell) -> None:
    sigaction = partial(ctypes.CDLL(None, use_errno=True).syscall, SYS_RT_SIGACTION)
    kept = ctypes.create_string_buffer(32)
    ignored = ctypes.create_string_buffer((1).to_bytes(8, "little"), 32)  # SIG_IGN, no flags, no mask
    assert sigaction(SIGCANCEL, ignored, kept, 8) == 0  # as GNU make's children find it: glibc never touches it
    try:
        async with await spawn_keeper(cell.spec("exec sleep 1000")) as keeper:
            status = read_status(await vmm_pid(keeper))
    finally:
        sigaction(SIGCANCEL, kept, None, 8)
    assert int(status["SigIgn"], 16) == 0


async def test_the_keeper_is_pid_1_of_a_namespace_of_its_own(cell: Cell) -> None:
    async with await spawn_keeper(cell.spec("exec sleep 1000")) as keeper:
        keeper_status = read_status(keeper.identity.pid)
        vmm_status = read_status(await vmm_pid(keeper))
    assert keeper_status["NSpid"].split()[-1] == "1"
    assert keeper_status["Name"] == f"keeper-{cell.room.folder.name}"
    assert vmm_status["PPid"] == str(keeper.identity.pid)


async def test_keeper_and_vmm_live_in_their_own_leaves(cell: Cell) -> None:
    leaf = f"/nimbus/{cell.room.name}"
    async with await spawn_keeper(cell.spec("exec sleep 1000")) as keeper:
        keeper_cgroups = read(f"/proc/{keeper.identity.pid}/cgroup").splitlines()
        vmm_cgroups = read(f"/proc/{await vmm_pid(keeper)}/cgroup").splitlines()
    assert f"0::{leaf}/keeper" in keeper_cgroups
    assert f"0::{leaf}/vmm" in vmm_cgroups


async def test_only_the_vmm_enters_the_network_namespace(cell: Cell) -> None:
    path = Path("/run/netns") / cell.room.name
    path.parent.mkdir(exist_ok=True)
    native.create_netns(path)
    try:
        spec = replace(cell.spec("exec sleep 1000"), netns=str(path))
        async with await spawn_keeper(spec) as keeper:
            own = os.stat(f"/proc/{await vmm_pid(keeper)}/ns/net").st_ino
            keepers = os.stat(f"/proc/{keeper.identity.pid}/ns/net").st_ino
            assert own == path.stat().st_ino
            await keeper.kill("test")
            await keeper.wait_exit()
    finally:
        native.remove_netns(path)
    assert keepers == os.stat("/proc/self/ns/net").st_ino


async def test_the_jail_shows_what_was_bound_and_nothing_else(cell: Cell) -> None:
    printed = await run_to_end(cell.spec("ls -A / /vm /dev /dev/net; pwd"))
    names = {Path(bind.target).name for bind in SYSTEM}
    assert printed.split() == [
        *["/:", *sorted(names | {"dev", "vm"})],
        *["/dev:", "net", "null"],
        *["/dev/net:", "tun"],
        *["/vm:", "own", "shared"],
        "/",
    ]


async def test_no_mount_of_the_host_is_left_in_the_vmms_namespace(cell: Cell) -> None:
    async with await spawn_keeper(cell.spec("exec sleep 1000")) as keeper:
        mounts = read(f"/proc/{await vmm_pid(keeper)}/mountinfo").splitlines()
    points = sorted(line.split()[4] for line in mounts)
    options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
    assert points == sorted(["/", "/vm/own", "/vm/shared", *(bind.target for bind in SYSTEM)])
    assert {"ro", "nosuid", "noexec"} <= set(options["/"])
    assert {"rw", "nosuid", "nodev"} <= set(options["/vm/own"])
    assert all({"ro", "nosuid", "nodev"} <= set(options[bind.target]) for bind in SYSTEM)


async def test_only_what_was_bound_writable_can_be_written(cell: Cell) -> None:
    script = """
        for path in /x /vm/x /dev/x /usr/x /vm/shared/x /vm/shared/base /vm/own/x; do
            (echo changed > $path) 2>/dev/null && echo $path
        done; echo > /dev/null && echo null
    """
    assert (await run_to_end(cell.spec(script))).split() == ["/vm/own/x", "null"]
    assert (cell.shared / "base").read_text() == "base image"
    assert (cell.own / "x").stat().st_mode & 0o777 == 0o600


async def test_the_host_sees_no_mount_of_the_jail(cell: Cell) -> None:
    async with await spawn_keeper(cell.spec("exec sleep 1000")):
        during = read("/proc/self/mountinfo")
    assert str(cell.room.folder) not in during
    assert os.listdir(cell.room.folder / "jail") == []


async def test_a_link_planted_in_a_writable_folder_leads_a_bind_nowhere(cell: Cell) -> None:
    (cell.own / "way").symlink_to("/usr")
    with pytest.raises(KeeperFailed, match="/vm/own/way/in") as caught:
        await spawn_keeper(cell.spec("exit 0", Bind(str(cell.shared), "/vm/own/way/in")))
    assert caught.value.step == "bind"


async def test_a_writable_source_that_is_a_link_is_refused(cell: Cell) -> None:
    (cell.own / "disk").symlink_to("/etc/passwd")
    with pytest.raises(KeeperFailed) as caught:
        await spawn_keeper(cell.spec("exit 0", Bind(str(cell.own / "disk"), "/vm/disk", writable=True)))
    assert caught.value.step == "bind"


async def test_a_jail_has_no_proc_unless_asked_for_and_then_shows_the_vmm_alone(cell: Cell) -> None:
    assert "proc" not in (await run_to_end(cell.spec("ls /"))).split()
    plain = cell.spec("ls /proc; echo hidden > /proc/self/comm || kill -0 1 || echo no more")
    assert plain.jail is not None
    printed = await run_to_end(replace(plain, jail=replace(plain.jail, proc=True)))
    names = set(printed.split())
    assert {name for name in names if name.isdigit()} == {"2", "3"}  # the shell and ls; the keeper, PID 1, is root's
    assert {"self", "thread-self"} < names
    assert not names & {"sys", "kallsyms", "cpuinfo", "mounts"}
    assert "no more" in printed


async def test_a_vmm_with_a_proc_can_open_by_name_what_it_inherited(cell: Cell) -> None:
    memory = os.memfd_create("template")
    try:
        os.write(memory, b"shared memory")
        spec = cell.spec(f"cat /proc/self/fd/{memory}")
        assert spec.jail is not None
        printed = await run_to_end(replace(spec, jail=replace(spec.jail, proc=True), keep_fds=(memory,)))
    finally:
        os.close(memory)
    assert printed == "shared memory"


async def test_a_bind_of_something_absent_is_named(cell: Cell) -> None:
    with pytest.raises(KeeperFailed, match="/no/such/image: No such file"):
        await spawn_keeper(cell.spec("exit 0", Bind("/no/such/image", "/image")))
    assert cell.room.is_empty()


async def test_single_files_can_be_bound(cell: Cell) -> None:
    assert await run_to_end(cell.spec("cat /boot/kernel", Bind(str(cell.shared / "base"), "/boot/kernel"))) == (
        "base image"
    )


async def test_limits_are_set_and_no_core_is_ever_dumped(cell: Cell) -> None:
    spec = replace(cell.spec("ulimit -n; ulimit -c; ulimit -f"), rlimits={"nofile": 64, "fsize": None})
    assert (await run_to_end(spec)).split() == ["64", "0", "unlimited"]


async def test_the_vmm_stays_an_ordinary_victim_when_memory_runs_out(cell: Cell) -> None:
    async with await spawn_keeper(cell.spec("exec sleep 1000")) as keeper:
        vmm = read(f"/proc/{await vmm_pid(keeper)}/oom_score_adj")
        keepers = read(f"/proc/{keeper.identity.pid}/oom_score_adj")
        degraded = keeper.degraded
    assert int(vmm) == 0
    assert (int(keepers), degraded) in {(-1000, ()), (0, ("oom_score_adj",))}


async def test_the_vmm_inherits_what_it_is_given_and_the_keeper_keeps_none_of_it(room: Room) -> None:
    read_fd, write_fd = os.pipe()
    stray_fd = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(stray_fd, True)
    try:
        script = f"ls /proc/self/fd; echo through >/proc/self/fd/{write_fd}; exec sleep 1000"
        async with await spawn_keeper(replace(room.shell(script), keep_fds=(write_fd,))) as keeper:
            listed = await wait_console(keeper, b"\n%d\n" % write_fd)
            os.close(write_fd)
            assert os.read(read_fd, 64) == b"through\n"
            targets = list_targets(keeper.identity.pid)
            pipe = os.readlink(f"/proc/self/fd/{read_fd}")
    finally:
        os.close(stray_fd)
        os.close(read_fd)
    assert {int(fd) for fd in listed.split()[:5]} == {0, 1, 2, 3, write_fd}  # 3 is ls reading the folder
    assert pipe not in targets
    assert "/etc/passwd" not in targets


async def test_the_vmm_can_signal_and_see_nobody_outside(cell: Cell) -> None:
    printed = await run_to_end(cell.spec(f"kill -0 {os.getpid()} 2>/dev/null && echo reached; kill -KILL 1; echo $$"))
    assert printed.split()[-1] == "2"
    assert "reached" not in printed
