"""nimbus-init for real, as its host double: what runs, how it ends, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import GuestHello, GuestJobStarted
from nimbus.model.vm import Command, ExitReason, GuestExit
from tests.native.guest_double import Host, new_session, open_double, run_once, shell

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the command becomes the user that it asks for"),
]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("code", [0, 1, 7, 255])
async def test_the_code_of_the_command_is_the_code_of_the_exit(tmp_path: Path, code: int) -> None:
    host = await run_once(tmp_path, shell(f"exit {code}"))

    assert host.saved == [GuestExit(code, None)]


async def test_a_command_killed_by_a_signal_says_which(tmp_path: Path) -> None:
    host = await run_once(tmp_path, shell("kill -SEGV $$"))

    assert host.saved == [GuestExit(None, signal.SIGSEGV)]
    assert host.saved[0].status == 139


async def test_kills_for_memory_are_those_between_the_jobs_start_and_its_end(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfree 9\noom_kill 5\nnr_oom_kill 70\n")
    kills = f"printf 'pgfree 10\\noom_kill 7\\nnr_oom_kill 80\\n' > {vmstat}; kill -KILL $$"

    host = await run_once(tmp_path, shell(kills), vmstat=vmstat)

    assert host.saved == [GuestExit(None, signal.SIGKILL, oom_kills=2)]


async def test_more_kills_for_memory_than_an_exit_can_tell_are_told_as_the_most_it_can(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"

    host = await run_once(tmp_path, shell(f"printf 'oom_kill 70000' > {vmstat}"), vmstat=vmstat)

    assert host.saved == [GuestExit(0, None, oom_kills=65535)]


async def test_a_job_that_never_started_has_no_kills_of_before_it(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_kill 5\n")

    host = await run_once(tmp_path, Command(("no-such-program",)), vmstat=vmstat)

    assert host.saved[0].oom_kills == 0


async def test_both_streams_arrive_apart_and_whole(tmp_path: Path) -> None:
    host = await run_once(tmp_path, shell("for n in 1 2 3; do echo out$n; echo err$n >&2; done"))

    assert host.sink.out == "out1\nout2\nout3\n"
    assert host.sink.err == "err1\nerr2\nerr3\n"


async def test_the_hello_and_the_start_are_told_before_the_exit(tmp_path: Path) -> None:
    host = await run_once(tmp_path, shell("true"))

    told = [type(event) for event in host.events if isinstance(event, GuestHello | GuestJobStarted)]
    hello = next(event for event in host.events if isinstance(event, GuestHello))
    assert told == [GuestHello, GuestJobStarted]
    assert hello.kernel_release == os.uname().release


async def test_a_program_that_is_not_there_ends_with_127(tmp_path: Path) -> None:
    host = await run_once(tmp_path, Command(("no-such-program",)))

    why = "cannot run no-such-program: No such file or directory"
    assert host.saved == [GuestExit(127, None, ExitReason.NOT_STARTED, why)]


async def test_a_file_that_cannot_be_executed_ends_with_126(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("text")

    host = await run_once(tmp_path, Command((str(tmp_path / "plain"),)))

    assert (host.saved[0].code, host.saved[0].reason) == (126, ExitReason.NOT_STARTED)
    assert host.saved[0].message.endswith("Permission denied")


async def test_a_folder_that_is_not_there_ends_with_126_and_its_name(tmp_path: Path) -> None:
    host = await run_once(tmp_path, replace(shell("true"), cwd="/no/such/folder"))

    why = "cannot enter folder /no/such/folder: No such file or directory"
    assert host.saved == [GuestExit(126, None, ExitReason.NOT_STARTED, why)]


async def test_a_user_that_is_not_there_ends_with_126_and_its_name(tmp_path: Path) -> None:
    host = await run_once(tmp_path, replace(shell("true"), user="nobody-we-know"))

    why = "there is no user nobody-we-know"
    assert host.saved == [GuestExit(126, None, ExitReason.NOT_STARTED, why)]


async def test_the_command_runs_in_its_folder_with_its_environment_and_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIMBUS_JWT_SECRET", "not for guests")
    command = Command(("/usr/bin/env",), {"A": "1 2\n3", "PATH": "/bin:/usr/bin"}, cwd=str(tmp_path))

    host = await run_once(tmp_path, command)

    assert set(host.sink.out.split("\n")) == {
        "PATH=/bin:/usr/bin",
        "HOME=/root",
        "USER=root",
        "LOGNAME=root",
        "A=1 2",
        "3",
        "",
    }


async def test_the_command_is_found_by_the_path_of_its_own_environment(tmp_path: Path) -> None:
    tool = tmp_path / "own-tool"
    tool.write_text("#!/bin/sh\npwd\n")
    tool.chmod(0o755)

    host = await run_once(tmp_path, Command(("own-tool",), {"PATH": str(tmp_path)}, cwd="/usr"))

    assert host.sink.out == "/usr\n"


async def test_words_of_any_content_arrive_as_they_are(tmp_path: Path) -> None:
    words = ("a b", "new\nline", "żółw", "", "'\"$(true)`", "*")

    host = await run_once(tmp_path, Command(("/usr/bin/printf", "%s|", *words)))

    assert host.sink.out == "|".join(words) + "|"


async def test_an_environment_larger_than_a_frame_arrives_whole(tmp_path: Path) -> None:
    env = {f"K{n}": f"{n}" * 500 for n in range(100, 230)}

    host = await run_once(tmp_path, replace(shell("env | grep ^K | wc -c"), env=env))

    assert int(host.sink.out) == sum(len(f"{name}={value}\n") for name, value in env.items()) > 190_000


async def test_one_variable_larger_than_linux_takes_is_a_clear_end(tmp_path: Path) -> None:
    host = await run_once(tmp_path, replace(shell("true"), env={"K": "v" * 200_000}))

    assert host.saved[0].reason is ExitReason.NOT_STARTED
    assert host.saved[0].message.endswith("Argument list too long")


async def test_the_command_becomes_the_user_with_its_groups_and_home(tmp_path: Path) -> None:
    host = await run_once(tmp_path, replace(shell("id -u; id -g; id -G; echo $HOME $USER"), user="nobody"))

    assert host.sink.out == "65534\n65534\n65534\n/nonexistent nobody\n"


async def test_a_number_without_a_name_is_a_user_and_never_in_the_root_group(tmp_path: Path) -> None:
    host = await run_once(tmp_path, replace(shell("id -u; id -g; id -G"), user="4321"))

    assert host.sink.out == "4321\n4321\n4321\n"


async def test_a_group_behind_the_user_is_the_only_group(tmp_path: Path) -> None:
    host = await run_once(tmp_path, replace(shell("id -u; id -g; id -G"), user="nobody:27"))

    assert host.sink.out == "65534\n27\n27\n"


async def test_the_command_has_a_session_of_its_own_and_no_input(tmp_path: Path) -> None:
    script = "cut -d' ' -f1,5,6 /proc/self/stat | tr ' ' '\\n' | tail -n2 | sort -u | wc -l; wc -c; ls /proc/self/fd"

    host = await run_once(tmp_path, shell(script))

    assert host.sink.out.split() == ["1", "0", "0", "1", "2", "3"]  # 3: the folder that ls reads


async def test_a_time_limit_asks_first_and_tells_why_it_ended(tmp_path: Path) -> None:
    polite = replace(shell("trap 'echo asked; exit 5' TERM; while :; do sleep 0.02; done"), timeout_s=0.2)

    host = await run_once(tmp_path, polite)

    assert host.sink.out == "asked\n"
    assert host.saved == [GuestExit(5, None, ExitReason.TIMEOUT, "its time limit has passed")]
    assert host.saved[0].status == 124


async def test_a_command_deaf_to_its_time_limit_is_killed_after_the_grace(tmp_path: Path) -> None:
    deaf = replace(shell("trap '' TERM; echo deaf; while :; do sleep 0.02; done"), timeout_s=0.2, grace_s=0.2)

    host = await run_once(tmp_path, deaf)

    assert host.sink.out == "deaf\n"
    assert host.saved == [GuestExit(None, signal.SIGKILL, ExitReason.TIMEOUT, "its time limit has passed")]


async def test_a_command_that_ends_well_when_asked_has_timed_out_all_the_same(tmp_path: Path) -> None:
    host = await run_once(tmp_path, replace(shell("trap 'exit 0' TERM; while :; do sleep 0.02; done"), timeout_s=1))

    assert (host.saved[0].code, host.saved[0].reason, host.saved[0].status) == (0, ExitReason.TIMEOUT, 124)


async def test_a_time_limit_asks_the_children_of_the_command_too(tmp_path: Path) -> None:
    child = "(trap 'echo child asked; exit' TERM; echo up; while :; do sleep 0.02; done)"
    script = f"trap 'wait; echo asked; exit' TERM; {child} & wait"

    host = await run_once(tmp_path, replace(shell(script), timeout_s=2))

    assert host.sink.out == "up\nchild asked\nasked\n"
    assert host.saved[0].reason is ExitReason.TIMEOUT


async def test_a_halted_command_hears_that_its_time_is_over(tmp_path: Path) -> None:
    host = await run_once(tmp_path, replace(shell("trap 'echo asked; exit 5' TERM; kill -STOP $$"), timeout_s=1))

    assert host.sink.out == "asked\n"
    assert (host.saved[0].code, host.saved[0].reason) == (5, ExitReason.TIMEOUT)


async def test_daemons_of_a_command_whose_time_is_over_are_dead_before_its_exit_is_told(tmp_path: Path) -> None:
    # Forked twice into a session of its own and deaf, it holds no output; its parent obeys at once.
    daemon = "setsid sh -c 'trap \"\" TERM; (while :; do sleep 0.02; done) >/dev/null 2>&1 & echo $!'"
    obedient = f"trap 'exit 3' TERM; {daemon}; while :; do sleep 0.02; done"

    host = await run_once(tmp_path, replace(shell(obedient), timeout_s=2))

    assert (host.saved[0].code, host.saved[0].status) == (3, 124)
    assert not is_alive(int(host.sink.out))


async def test_a_stop_ends_the_command_with_its_grace(tmp_path: Path) -> None:
    host = Host()
    host.on_event = lambda event: host.stop.set() if isinstance(event, GuestJobStarted) else None
    # Not `trap` alone: the stop may come before the shell has read that far, and is then as good.
    deaf = replace(shell("trap '' TERM; while :; do sleep 0.02; done"), grace_s=0.3)

    await run_once(tmp_path, deaf, host)

    assert host.saved[0].reason is ExitReason.STOPPED
    assert host.saved[0].signal in {signal.SIGTERM, signal.SIGKILL}


async def test_a_stop_before_the_start_is_an_exit_too(tmp_path: Path) -> None:
    host = Host()
    host.stop.set()

    await run_once(tmp_path, shell("sleep 100"), host)

    assert (host.saved[0].signal, host.saved[0].reason) == (signal.SIGTERM, ExitReason.STOPPED)


async def test_children_that_hold_the_output_are_killed_soon_after_the_command(tmp_path: Path) -> None:
    started = trio.current_time()

    host = await run_once(tmp_path, shell("sleep 1000 & echo $!"))

    assert host.saved[0].code == 0
    assert "held its output" in host.saved[0].message
    assert 1.5 < trio.current_time() - started < 10
    assert not is_alive(int(host.sink.out))


async def test_children_that_hold_nothing_are_dead_before_the_exit_is_told(tmp_path: Path) -> None:
    script = (
        "setsid sh -c 'sleep 1000 & echo $!; exec sleep 1000' >pids 2>&1 & while ! grep . pids; do sleep 0.02; done"
    )

    host = await run_once(tmp_path, replace(shell(f"{script}; echo $!"), cwd=str(tmp_path)))

    pids = [int(word) for word in host.sink.out.split()]
    assert len(pids) >= 2
    assert [pid for pid in pids if is_alive(pid)] == []


async def test_what_children_print_after_the_command_is_kept(tmp_path: Path) -> None:
    host = await run_once(tmp_path, shell("(sleep 0.3; echo late) & echo early"))

    assert host.sink.out == "early\nlate\n"
    assert host.saved == [GuestExit(0, None)]


async def test_orphans_are_reaped_while_the_command_runs(tmp_path: Path) -> None:
    # Each subshell leaves an orphan that ends at once; the last line counts the dead that nobody buried.
    script = """
for n in 1 2 3 4 5; do (sh -c 'sleep 0.05' &) ; done
sleep 0.5
parent=$(cut -d' ' -f4 /proc/$$/stat)
cat /proc/[0-9]*/stat 2>/dev/null | grep -c ") Z $parent "
"""

    host = await run_once(tmp_path, shell(script))

    assert host.sink.out == "0\n"


async def test_a_double_that_dies_takes_its_command_along(tmp_path: Path) -> None:
    host = Host()
    async with open_double(tmp_path) as double, trio.open_nursery() as nursery:
        started = trio.Event()
        host.on_event = lambda event: started.set() if isinstance(event, GuestJobStarted) else None
        nursery.start_soon(host.run, new_session(shell("exec sleep 1000")), double.connect)
        with trio.fail_after(10):
            await started.wait()
        pid = next(event.pid for event in host.events if isinstance(event, GuestJobStarted))
        pidfd = os.pidfd_open(pid)
        double.process.kill()
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)
        nursery.cancel_scope.cancel()

    assert not is_alive(pid)
