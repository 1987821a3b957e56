"""wire/keeper.py: the keeper's command line, and all that it may say, torn and strange answers included."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Fenced, HostFault, NimbusError, Refused
from nimbus.wire.keeper import (
    VANISHED,
    Bind,
    ConsoleChunk,
    Jail,
    KeeperFailed,
    KeeperSpec,
    KeeperStatus,
    Started,
    VmmExit,
    parse_console,
    parse_exit,
    parse_ok,
    parse_ready,
    parse_status,
    render_argv,
    render_console,
    render_deadline,
    render_kill,
    render_lease,
)

SPEC = KeeperSpec("/vms/1", "/cg/1", 200_001, 200_002, ("/usr/bin/vmm", "-x"), 17)
EXIT = {
    "version": 1,
    "kind": "signaled",
    "code": 9,
    "reason": "kill",
    "detail": "fenced",
    "ended_ns": 5,
    "console_total": 3,
}


def test_a_plain_spec_becomes_a_command_line() -> None:
    assert " ".join(render_argv(SPEC, keeper="/k", ready_fd=9)) == (
        "/k --ready-fd 9 --dir /vms/1 --cgroup /cg/1 --uid 200001 --gid 200002 --deadline 17 -- /usr/bin/vmm -x"
    )


def test_everything_that_can_be_asked_is_in_the_command_line() -> None:
    spec = replace(
        SPEC,
        deadline_ns=None,
        netns="/run/netns/n",
        jail=Jail("/j", (Bind("/a", "/b"), Bind("/c", "/d", writable=True)), ("kvm", "net/tun"), proc=True),
        rlimits={"nofile": 64, "memlock": None},
        keep_fds=(7,),
    )
    words = " ".join(render_argv(spec, keeper="/k", ready_fd=9, orphan_fd=8))
    assert words == (
        "/k --ready-fd 9 --dir /vms/1 --cgroup /cg/1 --uid 200001 --gid 200002 --deadline none --orphan-fd 8 "
        "--netns /run/netns/n --jail /j --bind /a:/b:ro --bind /c:/d:rw --dev kvm --dev net/tun --proc "
        "--rlimit nofile=64 --rlimit memlock=max --keep-fd 7 -- /usr/bin/vmm -x"
    )


def test_a_jailer_leaves_the_vmms_pid_in_a_file() -> None:
    spec = KeeperSpec("/vms/1", "/cg/1", 0, 0, ("/bin/jailer",), 17, pid_file="/jail/vmm.pid")
    words = " ".join(render_argv(spec, keeper="/k", ready_fd=9))
    assert words.endswith(" --deadline 17 --pid-file /jail/vmm.pid -- /bin/jailer")


@pytest.mark.parametrize(
    "change",
    [
        {"pid_file": "relative", "uid": 0},
        {"pid_file": "/p"},
        {"pid_file": "/p", "uid": 0, "jail": Jail("/j")},
        {"pid_file": "/p", "uid": 0, "netns": "/n"},
        {"folder": "relative"},
        {"cgroup": "/a/../b"},
        {"netns": ""},
        {"argv": ()},
        {"argv": ("vmm",)},
        {"argv": ("/vmm", "a\0b")},
        {"rlimits": {"files": 1}},
    ],
)
def test_a_spec_that_the_keeper_would_refuse_is_never_made(change: dict[str, object]) -> None:
    with pytest.raises(Refused):
        replace(SPEC, **change)  # type: ignore[arg-type] # the point of the test


@pytest.mark.parametrize(("source", "target"), [("/a:b", "/c"), ("/a", "c"), ("/a", "/c/.."), ("/a", "/c:ro")])
def test_a_bind_that_would_be_read_as_another_is_refused(source: str, target: str) -> None:
    with pytest.raises(Refused):
        Bind(source, target)


@pytest.mark.parametrize("device", ["/dev/kvm", "../sda", "net/../sda", "", "a//b"])
def test_a_device_outside_dev_is_refused(device: str) -> None:
    with pytest.raises(Refused):
        Jail("/j", devices=(device,))


def test_a_ready_line_names_both_processes() -> None:
    line = b'{"pid": 10, "vmm_pid": 11, "degraded": ["oom_score_adj"]}\n'
    assert parse_ready(line, 0) == Started(10, 11, ("oom_score_adj",))


def test_a_failed_step_keeps_its_name_and_errno() -> None:
    with pytest.raises(KeeperFailed, match="no such netns") as caught:
        parse_ready(b'{"error": "no such netns", "errno": 2, "step": "netns"}\n', 70)
    assert (caught.value.step, caught.value.errno) == ("netns", 2)


def test_a_deadline_that_has_passed_is_a_lost_lease_not_a_broken_host() -> None:
    with pytest.raises(Fenced):
        parse_ready(b'{"error": "the deadline has passed", "errno": 62, "step": "deadline"}\n', 75)


def test_a_keeper_that_says_nothing_is_reported_with_its_status() -> None:
    with pytest.raises(KeeperFailed, match="status -9"):
        parse_ready(b"", -9)


@given(st.binary())
def test_no_ready_line_does_more_harm_than_a_named_error(line: bytes) -> None:
    with suppress(NimbusError):
        parse_ready(line, 0)


def test_messages_are_rendered_as_the_keeper_reads_them() -> None:
    rendered = (render_deadline(5), render_deadline(None), render_lease(6), render_kill("lost"), render_console(7))
    assert rendered == (b"DEADLINE 5", b"DEADLINE none", b"LEASE 6", b"KILL lost", b"CONSOLE 7")


@pytest.mark.parametrize("reason", ["", "Big", "two words", "a" * 33, "a\n"])
def test_a_reason_that_is_no_word_is_refused(reason: str) -> None:
    with pytest.raises(Refused):
        render_kill(reason)


def test_an_answer_is_ok_or_fenced_or_a_fault() -> None:
    parse_ok(b"OK")
    with pytest.raises(Fenced):
        parse_ok(b"ERR past")
    with pytest.raises(HostFault, match="malformed"):
        parse_ok(b"ERR malformed")


def test_a_status_is_read() -> None:
    reply = {"version": 1, "phase": "running", "vmm_pid": 4, "deadline_ns": None, "console_total": 2, "killing": None}
    assert parse_status(json.dumps(reply).encode()) == KeeperStatus("running", 4, None, 2, None)


@given(st.binary())
def test_no_status_does_more_harm_than_a_named_error(reply: bytes) -> None:
    with suppress(HostFault):
        parse_status(reply)


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.binary())
def test_console_bytes_come_back_whatever_they_are(start: int, total: int, data: bytes) -> None:
    assert parse_console(b"DATA %d %d\n%s" % (start, total, data)) == ConsoleChunk(start, total, data)


@pytest.mark.parametrize("reply", [b"", b"ERR malformed", b"DATA 1\n", b"DATA -1 2\n", b"DATA 1 2"])
def test_a_console_answer_without_its_head_is_a_fault(reply: bytes) -> None:
    with pytest.raises(HostFault):
        parse_console(reply)


@pytest.mark.parametrize("version", [1, 2])
def test_an_ending_is_read_whether_this_version_wrote_it_or_the_last(version: int) -> None:
    told = json.dumps(EXIT | {"version": version}).encode()
    assert parse_exit(told) == VmmExit("signaled", 9, "kill", "fenced", 5, 3)


@pytest.mark.parametrize("change", [{"version": 3}, {"kind": "vanished"}, {"code": None}, {"reason": 1}])
def test_an_ending_of_another_make_counts_as_none(change: dict[str, object]) -> None:
    assert parse_exit(json.dumps(EXIT | change).encode()) == VANISHED


@given(st.integers(0, len(json.dumps(EXIT)) - 1))
def test_a_half_written_ending_counts_as_none(size: int) -> None:
    assert parse_exit(json.dumps(EXIT).encode()[:size]) == VANISHED


@given(st.binary())
def test_no_bytes_in_place_of_an_ending_raise(text: bytes) -> None:
    assert parse_exit(text).kind in {"vanished", "exited", "signaled"}
