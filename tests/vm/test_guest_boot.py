"""nimbus-init as PID 1 of a real kernel: what a job finds there, how it ends, and a link cut again and again."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import GuestConnected, GuestHello, GuestJobStarted
from nimbus.model.vm import Command, ExitReason, GuestExit
from tests.hosts import require_guest
from tests.native.guest_double import CutStream, Host, shell
from tests.vm.bare_guest import BareGuest, new_session, open_bare_guest

pytestmark = [pytest.mark.vm, pytest.mark.slow]
LIMIT_S = 120  # two seconds alone; thirty on a machine that eight share
FIELDS = """
uname -r; hostname; date +%s; pwd; tty 2>&1; echo $$; cat /proc/1/comm
echo "mounts $(cut -d' ' -f2,3 /proc/mounts | sort | tr ' \\n' ': ')"
echo "root $(touch /written && ls /written) $(touch /tmp/x && stat -c %a /tmp)"
echo "dev $(for name in fd stdin stdout stderr; do readlink /dev/$name; done | tr '\\n' ' ')"
echo "address $(ip -4 -o address show eth0 | awk '{print $4}') $(ip route | head -n1 | awk '{print $1,$2,$3}')"
echo "lo $(ip -4 -o address show lo | awk '{print $4}')"
echo "names $(cat /etc/resolv.conf) $(grep -c nimbus /etc/hosts)"
echo "machine $(cat /etc/machine-id)"
echo "files $(ulimit -n)"
echo "policies $(cut -d' ' -f41 /proc/1/stat) $(cut -d' ' -f41 /proc/self/stat)"
sh -c 'sleep 0.1' & sh -c '(sleep 0.05 &)'; wait; sleep 0.3
echo "zombies $(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l)"
"""


@pytest.fixture(autouse=True)
def _guest() -> None:
    require_guest()


async def run_once(folder: Path, command: Command, host: Host, *, network: bool = True) -> None:
    """One command in one guest, to the end of its VMM."""
    async with open_bare_guest(folder, network=network) as guest:
        with trio.fail_after(LIMIT_S):
            await host.run(new_session(command), guest.connect)
            await guest.process.wait()
    assert guest.process.returncode == 0


async def test_a_job_finds_a_root_of_its_own_with_all_that_programs_expect(tmp_path: Path) -> None:
    host = Host()
    before = time.time()

    await run_once(tmp_path, replace(shell(FIELDS), cwd="/etc"), host)

    release, name, clock, folder, terminal, pid, init, *rest = host.sink.out.splitlines()
    told = dict(line.split(" ", 1) for line in rest)
    hello = next(event for event in host.events if isinstance(event, GuestHello))
    started = next(event for event in host.events if isinstance(event, GuestJobStarted))
    assert host.saved == [GuestExit(0, None)]
    assert release == hello.kernel_release
    assert (name, folder, terminal, int(pid), init) == ("nimbus", "/etc", "not a tty", started.pid, "init")
    assert before - 1 <= int(clock) <= time.time() + 1
    assert {"/:overlay", "/dev:devtmpfs", "/dev/pts:devpts", "/dev/shm:tmpfs", "/proc:proc"} < set(
        told["mounts"].split()
    )
    assert {"/run:tmpfs", "/sys:sysfs", "/sys/fs/cgroup:cgroup2"} < set(told["mounts"].split())
    assert told["root"] == "/written 1777"
    assert told["dev"].split() == ["/proc/self/fd", *(f"/proc/self/fd/{n}" for n in range(3))]
    assert told["address"] == "172.16.0.2/30 default via 172.16.0.1"
    assert len(told["machine"]) == 32
    assert hello.prepared
    assert told["lo"] == "127.0.0.1/8"
    assert told["names"] == "nameserver 172.16.0.1 1"
    assert int(told["files"]) >= 65536
    assert told["policies"] == "3 0"  # PID 1 is a batch process, the job an ordinary one
    assert told["zombies"] == "0"
    assert hello.kernel_ms > 0
    assert started.boot_ms >= hello.kernel_ms + hello.init_ms


async def test_two_guests_of_one_image_are_two_machines(tmp_path: Path) -> None:
    command = shell("cat /etc/machine-id /proc/sys/kernel/random/boot_id")
    hosts = (Host(), Host())

    async with trio.open_nursery() as nursery:
        for number, host in enumerate(hosts):
            (tmp_path / str(number)).mkdir()
            nursery.start_soon(run_once, tmp_path / str(number), command, host)

    ids = [line for host in hosts for line in host.sink.out.splitlines()]
    assert len(set(ids)) == len(ids) == 4


async def test_without_the_network_that_it_was_promised_a_job_does_not_start(tmp_path: Path) -> None:
    host = Host()

    await run_once(tmp_path, shell("true"), host, network=False)

    why = "the guest has no network (address): No such device"
    assert host.saved == [GuestExit(126, None, ExitReason.NOT_STARTED, why)]


async def test_a_time_limit_in_a_guest_ends_every_process_of_the_job(tmp_path: Path) -> None:
    # A daemon that left the session, and everybody deaf: only SIGKILL to all ends this, and then the VM goes.
    script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & echo up; sleep 1000"
    host = Host()

    await run_once(tmp_path, replace(shell(script), timeout_s=1, grace_s=0.5), host)

    assert host.sink.out == "up\n"
    assert (host.saved[0].signal, host.saved[0].reason) == (9, ExitReason.TIMEOUT)


async def test_a_job_killed_for_memory_says_so_whatever_it_does_to_its_proc(tmp_path: Path) -> None:
    # A pipe in the counters' place would hold up whoever opened them by name after the job began.
    hide = "mkfifo /tmp/pipe && mount --bind /tmp/pipe /proc/vmstat &&"
    host = Host()

    await run_once(tmp_path, shell(f"{hide} exec tail /dev/zero"), host)

    assert host.saved == [GuestExit(None, 9, oom_kills=1)]


async def test_a_link_to_a_real_guest_cut_at_random_places_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    chance = random.Random(1)
    host = Host()
    cuts = 0

    async def connect_badly(guest: BareGuest) -> trio.abc.Stream:
        nonlocal cuts
        inner = await guest.connect()
        cuts += 1
        if cuts > 30:
            return inner
        return CutStream(inner, int(10 ** chance.uniform(0, 5.8)), int(10 ** chance.uniform(1.5, 4.5)))

    async with open_bare_guest(tmp_path) as guest:
        with trio.fail_after(LIMIT_S):
            await host.run(new_session(shell("seq 1 300000; exit 9")), partial(connect_badly, guest))
            await guest.process.wait()

    expected = hashlib.sha256("".join(f"{n}\n" for n in range(1, 300_001)).encode())
    assert host.sink.hashes["stdout"].digest() == expected.digest()
    assert host.saved == [GuestExit(9, None)]
    assert sum(isinstance(event, GuestConnected) for event in host.events) > 10
