"""`nimbus run` for somebody who has just met it: what the command says and how it ends arrives as if it ran here."""

from __future__ import annotations

import hashlib
import json

import pytest

from nimbus.storage.content import ImageStore
from nimbus.storage.images import read_manifest
from tests.hosts import BUILT_IMAGES
from tests.vm.terminal import Terminal

pytestmark = [pytest.mark.vm, pytest.mark.root]

LABEL = b"software emulation: not a security boundary"


def test_the_kernel_that_answers_is_the_images_own(terminal: Terminal) -> None:
    done = terminal.run("--", "uname", "-r")
    release = read_manifest(ImageStore(BUILT_IMAGES), "base").kernel_release
    assert (done.stdout.decode(), done.returncode) == (release + "\n", 0)
    assert LABEL in done.stderr


def test_the_two_streams_stay_apart_and_the_exit_status_is_the_commands(terminal: Terminal) -> None:
    done = terminal.run("--quiet", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_json_is_one_object_on_stdout_and_all_else_is_on_stderr(terminal: Terminal) -> None:
    done = terminal.run("--json", "--", "echo", "to be seen")
    told = json.loads(done.stdout)
    assert done.stdout.count(b"\n") == 1
    assert LABEL in done.stderr
    assert b"to be seen\n" in done.stderr
    assert (told["backend"], told["accel"], told["status"], told["ending"]) == ("qemu", "tcg", 0, "done")
    assert (told["exit_code"], told["signal"], told["clean"]) == (0, None, True)
    assert {"network", "disk", "vmm", "kernel", "guest", "teardown", "total"} <= told["phases_ms"].keys()
    assert 0 < told["phases_ms"]["kernel"] < told["phases_ms"]["total"]


def test_environment_folder_and_user_are_those_that_were_asked_for(terminal: Terminal) -> None:
    script = 'echo "$WHO|$HERE|$PWD|$(id -un)"; test -z "$PYTEST_VERSION"'
    done = terminal.run(
        *("--env", "WHO=a b=c 'ü'", "-e", "HERE", "-e", "NOT_SET_HERE", "--workdir", "/tmp", "--user", "nobody"),
        *("--", "sh", "-c", script),
        env={"HERE": "from outside"},
    )
    assert done.stdout.decode() == "a b=c 'ü'|from outside|/tmp|nobody\n"
    assert done.returncode == 0


def test_a_command_beyond_its_time_exits_124_and_says_so(terminal: Terminal) -> None:
    done = terminal.run("--timeout", "1", "--", "sh", "-c", "echo before; sleep 1000")
    assert (done.stdout, done.returncode) == (b"before\n", 124)
    assert b"its time limit has passed" in done.stderr


def test_a_command_that_a_signal_ends_exits_128_and_its_number(terminal: Terminal) -> None:
    done = terminal.run("--", "sh", "-c", "kill -TERM $$")
    assert done.returncode == 128 + 15


def test_a_command_that_cannot_start_says_why(terminal: Terminal) -> None:
    missing = terminal.run("--", "no-such-program")
    assert missing.returncode == 127
    assert b"cannot run no-such-program: No such file or directory" in missing.stderr
    folder = terminal.run("--workdir", "/no/such", "--", "/etc/passwd")
    assert folder.returncode == 126
    assert b"cannot enter folder /no/such" in folder.stderr


def test_a_file_that_is_no_program_exits_126(terminal: Terminal) -> None:
    done = terminal.run("--", "/etc/passwd")
    assert done.returncode == 126
    assert b"cannot run /etc/passwd: Permission denied" in done.stderr


def test_binary_output_arrives_byte_for_byte(terminal: Terminal) -> None:
    script = "head -c 5000000 /dev/urandom > /tmp/noise; cat /tmp/noise; sha256sum /tmp/noise >&2"
    done = terminal.run("--quiet", "--", "sh", "-c", script)
    assert len(done.stdout) == 5_000_000
    assert hashlib.sha256(done.stdout).hexdigest() == done.stderr.split()[0].decode()


def test_a_guest_has_memory_and_processors_as_asked_and_a_fresh_disk(terminal: Terminal) -> None:
    script = "nproc; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; touch /left && ls / | wc -l"
    first = terminal.run("--cpus", "2", "--memory", "512M", "--", "sh", "-c", script)
    second = terminal.run("--cpus", "2", "--memory", "512M", "--", "sh", "-c", script)
    processors, mem_mib, _ = first.stdout.split()
    assert processors == b"2"
    assert 400 < int(mem_mib) <= 512
    assert first.stdout == second.stdout  # the second disk knows nothing of the first


def test_a_job_that_takes_all_memory_is_killed_and_not_the_guest(terminal: Terminal) -> None:
    done = terminal.run("--memory", "128M", "--", "sh", "-c", "tail /dev/zero; echo survived $?; dmesg | tail -n 3")
    assert b"survived 137\n" in done.stdout
    assert b"Out of memory: Killed process" in done.stdout
    assert done.returncode == 0


def test_a_command_killed_for_memory_says_so_and_what_to_do(terminal: Terminal) -> None:
    done = terminal.run("--memory", "128M", "--", "sh", "-c", "echo begun; exec tail /dev/zero")
    assert (done.stdout, done.returncode) == (b"begun\n", 137)
    assert b"nimbus: the guest ran out of memory (128 MiB) and its kernel killed a process of the job\n" in done.stderr
    assert b"nimbus: run it again with more: --memory SIZE\n" in done.stderr


def test_a_death_for_memory_has_an_ending_of_its_own(terminal: Terminal) -> None:
    done = terminal.run("--memory", "128M", "--json", "--", "sh", "-c", "tail /dev/zero")
    told = json.loads(done.stdout)
    assert (told["ending"], told["status"], told["clean"]) == ("out_of_memory", 137, True)
    assert "ran out of memory" in told["cause"]


def test_a_failure_that_hides_a_death_for_memory_is_explained(terminal: Terminal) -> None:
    done = terminal.run("--memory", "128M", "--json", "--", "sh", "-c", "tail /dev/zero || exit 2")
    told = json.loads(done.stdout)
    assert (told["ending"], told["status"]) == ("failed", 2)
    assert "ran out of memory (128 MiB)" in told["cause"]


def test_a_kernel_that_dies_for_memory_ran_out_of_it_and_did_not_just_crash(terminal: Terminal) -> None:
    script = "echo begun; echo 1 > /proc/sys/vm/panic_on_oom; tail /dev/zero"
    done = terminal.run("--memory", "128M", "--json", "--", "sh", "-c", script)
    told = json.loads(done.stdout)
    assert (told["ending"], told["status"], told["exit_code"]) == ("out_of_memory", 125, None)
    assert "Kernel panic - not syncing: Out of memory" in told["cause"]


def test_a_kernel_that_dies_right_after_its_commands_last_word_is_no_success(terminal: Terminal) -> None:
    done = terminal.run("--", "sh", "-c", "echo all went well; echo c > /proc/sysrq-trigger")
    assert done.returncode == 125
    assert b"its kernel died" in done.stderr
    assert b"Kernel panic - not syncing: sysrq triggered crash" in done.stderr


def test_a_guest_that_restarts_itself_ends_its_vmm_with_0_and_is_a_crash_all_the_same(terminal: Terminal) -> None:
    done = terminal.run("--json", "--", "sh", "-c", "echo b > /proc/sysrq-trigger; sleep 1000")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ending"], told["exit_code"]) == (125, "guest_crashed", None)
    assert "the VMM exited 0" in told["cause"]


def test_a_guest_whose_kernel_dies_is_a_crash_and_no_success(terminal: Terminal) -> None:
    done = terminal.run("--json", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000")
    told = json.loads(done.stdout)
    assert done.returncode == 125
    assert (told["ending"], told["status"], told["exit_code"]) == ("guest_crashed", 125, None)
    assert "Kernel panic - not syncing: sysrq triggered crash" in told["cause"]


def test_the_guests_first_process_cannot_be_killed_by_the_job(terminal: Terminal) -> None:
    done = terminal.run("--", "sh", "-c", "kill -KILL 1; kill -SEGV 1; kill -STOP 1; echo alive")
    assert (done.stdout, done.returncode) == (b"alive\n", 0)


def test_it_runs_with_its_stdin_closed(terminal: Terminal) -> None:
    done = terminal.run("--", "echo", "heard", before=("sh", "-c", 'exec "$@" <&-', "sh"))
    assert (done.stdout, done.returncode) == (b"heard\n", 0)


def test_a_reader_that_leaves_ends_the_run_as_it_would_end_a_local_command(terminal: Terminal) -> None:
    with terminal.start("--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(10) == 128 + 13
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_an_output_that_takes_no_more_ends_the_run_with_the_reason(terminal: Terminal) -> None:
    command = 'exec "$@" > /dev/full'
    done = terminal.run("--", "echo", "lost", before=("sh", "-c", command, "sh"))
    assert done.returncode == 125
    assert b"cannot write the command's stdout: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
