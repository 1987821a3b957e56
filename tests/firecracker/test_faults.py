"""Whatever goes wrong with a jailer or a Firecracker has a name, ends the VM, and leaves nothing on the host."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import structlog
import trio
from prometheus_client import REGISTRY

from nimbus.host import process
from nimbus.host.netns import remove_netns
from nimbus.host_agent import jailer
from nimbus.host_agent.jailer import SecurityAlarm
from nimbus.host_agent.vmm.fcapi import CallLimits
from nimbus.host_agent.vmm.fcexits import NAME, explain_exit
from nimbus.host_agent.vmm.firecracker import Firecracker
from nimbus.host_agent.vmm.machine import Stage
from nimbus.model.errors import HostFault, Refused
from nimbus.wire.keeper import KeeperFailed
from tests.firecracker.bench import (
    IDLE,
    LIMIT_S,
    Bench,
    holding_tap,
    on_the_real_one,
    open_plan,
    open_run,
    run_until_it_fails,
)

pytestmark = pytest.mark.root


def count_alarms() -> float:
    return REGISTRY.get_sample_value("nimbus_host_agent_security_alarms_total") or 0.0


def leave(path: Path) -> None:
    """What an earlier jail of that id could have left."""
    path.touch()


def replace_file(path: Path, content: bytes) -> None:
    """Another file in a chroot: the one that was linked is the host's and stays as it is."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o444)


# --- the jailer ------------------------------------------------------------------------------------------------------


async def test_a_jailer_that_fails_is_quoted(bench: Bench) -> None:
    async with open_plan(bench) as (plan, boot):
        leave(jailer.plan_pid_file(plan, boot))
        with pytest.raises(KeeperFailed, match=r"status 1.*firecracker\.pid.*File exists") as caught:
            await run_until_it_fails(plan, boot, bench)
        assert caught.value.step == "pid-file"


async def test_a_jailer_without_its_netns_is_quoted(bench: Bench) -> None:
    async with open_plan(bench) as (plan, boot):
        await trio.to_thread.run_sync(remove_netns, plan.net.name)
        with pytest.raises(KeeperFailed, match=r"/run/netns/.*No such file"):
            await run_until_it_fails(plan, boot, bench)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ("sys.exit(0)", "No such file"),
        ("print('out of order'); sys.exit(3)", "status 3.*out of order"),
        ("open('%s', 'w').close(); sys.exit(0)", "Invalid argument"),
        ("open('%s', 'w').write('1'); sys.exit(0)", "no child"),
        ("os.symlink('/etc/passwd', '%s'); sys.exit(0)", "symbolic links"),
        ("args[args.index('--chroot-base-dir') + 1] = '/no/such/base'", "status 1"),
    ],
)
async def test_a_jailer_that_leaves_no_vmm_behind_is_a_start_that_failed(bench: Bench, edit: str, why: str) -> None:
    async with open_plan(bench) as (plan, boot):
        scripted = bench.with_jailer(edit.replace("%s", str(jailer.plan_pid_file(plan, boot))))
        with pytest.raises(KeeperFailed, match=why):
            await run_until_it_fails(plan, scripted.boot(boot), scripted)


OTHER_CGROUP = """
own = next(line[3:].strip() for line in open('/proc/self/cgroup') if line.startswith('0::'))
mount = next(line.split()[4] for line in open('/proc/self/mountinfo') if ' - cgroup2 ' in line)
open(f'{mount}{os.path.dirname(own)}/keeper/cgroup.procs', 'w').write('0')
at = args.index('--parent-cgroup')
del args[at:at + 2]
"""


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("args.append('--no-seccomp')", "Seccomp of thread 'fc_api' is '0'"),
        ("args[args.index('--uid') + 1] = '261999'", "Uid of thread"),
        ("args[args.index('--gid') + 1] = '261999'", "Gid of thread"),
        ("at = args.index('--netns'); del args[at:at + 2]", "its network namespace is another"),
        (OTHER_CGROUP, "its cgroup is 0::.*/keeper"),
    ],
)
async def test_a_vmm_that_is_not_jailed_as_asked_is_an_alarm_and_dies(bench: Bench, edit: str, said: str) -> None:
    before = count_alarms()
    async with open_plan(bench) as (plan, boot):
        scripted = bench.with_jailer(edit)
        with structlog.testing.capture_logs() as logged, pytest.raises(SecurityAlarm, match=said):
            await run_until_it_fails(plan, scripted.boot(boot), scripted)
    alarms = [line for line in logged if line["event"] == "security.alarm"]
    assert [(line["log_level"], line["vm"]) for line in alarms] == [("error", str(plan.vm))]
    assert count_alarms() == before + 1


# --- the API ---------------------------------------------------------------------------------------------------------


async def test_an_api_that_never_appears_is_given_up(bench: Bench) -> None:
    edit = "args[args.index('--api-sock') + 1] = '/run/other.sock'"
    hasty = bench.with_jailer(edit).with_vmm(Firecracker(ready_s=0.5, kernel_line=IDLE))
    async with open_plan(bench) as (plan, boot):
        with pytest.raises(HostFault, match="did not answer in"):
            await run_until_it_fails(plan, hasty.boot(boot), hasty)


async def test_a_vmm_that_ends_before_it_answers_is_told_by_its_own_words(bench: Bench) -> None:
    scripted = bench.with_jailer("args.append('--no-such-option')")
    async with open_plan(bench) as (plan, boot):
        with pytest.raises(HostFault, match=r"exited 153.*no-such-option"):
            await run_until_it_fails(plan, scripted.boot(boot), scripted)


async def test_a_refused_call_is_told_word_for_word(bench: Bench) -> None:
    async with open_plan(bench) as (plan, boot):
        replace_file(jailer.plan_root(plan, boot) / jailer.KERNEL, b"no kernel at all")
        with pytest.raises(HostFault, match=r"refused PUT /actions: .*(kernel|Kernel|ELF|Elf)"):
            await run_until_it_fails(plan, boot, bench)
    async with open_plan(bench) as (plan, boot):
        (jailer.plan_root(plan, boot) / jailer.OVERLAY).unlink()
        with pytest.raises(HostFault, match=r"refused PUT /drives/overlay: .*No such file"):
            await run_until_it_fails(plan, boot, bench)
    async with open_plan(bench) as (plan, boot):
        with holding_tap(plan), pytest.raises(HostFault, match=r"refused PUT /network-interfaces/net: .*busy"):
            await run_until_it_fails(plan, boot, bench)


async def test_metadata_beyond_the_limit_is_the_jobs_own_fault(bench: Bench) -> None:
    scripted = bench.with_jailer("args += ['--mmds-size-limit', '16']")
    async with open_plan(bench) as (plan, boot):
        with pytest.raises(Refused, match="metadata is too large"):
            await run_until_it_fails(plan, scripted.boot(boot), scripted)


async def test_a_vmm_that_is_stopped_gives_no_answer_in_time_and_can_be_killed(bench: Bench) -> None:
    hasty = bench.with_vmm(Firecracker(CallLimits(quick_s=0.3, slow_s=0.3), kernel_line=IDLE))
    async with open_plan(hasty) as (plan, boot), open_run(plan, boot, hasty) as run:
        vmm = await run.machine.keeper.vmm_identity()
        os.kill(vmm.pid, signal.SIGSTOP)
        with trio.fail_after(LIMIT_S):
            with pytest.raises(HostFault, match="no answer to PATCH /vm"):
                await hasty.vmm.pause(run.machine)
            await run.machine.keeper.kill("test")
            await run.over.wait()
        assert not process.is_alive(vmm)


# --- its death -------------------------------------------------------------------------------------------------------


@on_the_real_one
@pytest.mark.parametrize(
    ("number", "kind", "code", "words"),
    [
        (signal.SIGKILL, "signaled", 9, ""),
        (signal.SIGSYS, "exited", 2, "foresee"),  # 148 is for the kernel's own: of a call that the filter forbids
        (signal.SIGBUS, "exited", 149, "SIGBUS"),
        (signal.SIGSEGV, "exited", 150, "SIGSEGV"),
        (signal.SIGXFSZ, "exited", 151, "SIGXFSZ"),
        (signal.SIGHUP, "exited", 156, "SIGHUP"),
        (signal.SIGILL, "exited", 157, "SIGILL"),
    ],
)
async def test_each_death_has_its_exit_and_each_exit_its_words(
    bench: Bench, number: signal.Signals, kind: str, code: int, words: str
) -> None:
    async with open_plan(bench) as (plan, boot), open_run(plan, boot, bench) as run:
        await run.wait_printed("nimbus-probe: up")
        os.kill((await run.machine.keeper.vmm_identity()).pid, number)
        with trio.fail_after(LIMIT_S):
            await run.over.wait()
    assert (run.ended[0].kind, run.ended[0].code, run.ended[0].reason) == (kind, code, "exit")
    assert words in explain_exit(NAME, run.ended[0])


async def test_a_vmm_that_dies_before_its_guest_runs_is_told_with_its_last_words(bench: Bench) -> None:
    async with open_plan(bench) as (plan, boot), open_run(plan, boot, bench, Stage.SPAWNED) as run:
        os.kill((await run.machine.keeper.vmm_identity()).pid, signal.SIGKILL)
        with trio.fail_after(LIMIT_S), pytest.raises(HostFault, match=r"dead|died|ended"):
            await bench.vmm.run(run.machine, boot)


async def test_a_guest_without_a_vsock_driver_is_not_waited_for_without_end(bench: Bench) -> None:
    async with open_plan(bench) as (plan, boot), open_run(plan, boot, bench) as run:
        await run.wait_printed("nimbus-probe: up")
        with trio.fail_after(LIMIT_S), pytest.raises(OSError, match="1024"):
            await run.machine.connect_guest()
