"""The witness itself: it sees two runs of one request that overlap, and is silent about runs that follow each other."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.faults.witness import Beat, beat_argv, find_double_runs, find_gaps, read_beats


def beats_of(machine: int, fence: int, pid: int, first: int, last: int) -> list[Beat]:
    return [Beat(at * 100_000_000, machine, fence, pid) for at in range(first, last + 1)]


def test_two_fences_that_beat_at_the_same_time_are_a_double_run() -> None:
    found = find_double_runs(beats_of(1, 1, 10, 0, 5) + beats_of(1, 2, 20, 5, 9))
    assert found == ["machine 1: fence 1 still ran when fence 2 had begun"]


def test_a_short_run_in_the_middle_of_a_long_one_is_a_double_run() -> None:
    assert len(find_double_runs(beats_of(1, 1, 10, 0, 9) + beats_of(1, 2, 20, 4, 4))) == 1


def test_two_processes_under_one_fence_are_a_double_run_even_one_after_the_other() -> None:
    found = find_double_runs(beats_of(1, 1, 10, 0, 2) + beats_of(1, 1, 11, 5, 9))
    assert found == ["machine 1 fence 1: ran as 10 and as 11"]


def test_an_older_fence_that_begins_after_a_newer_one_ended_is_a_double_run() -> None:
    assert len(find_double_runs(beats_of(1, 2, 20, 0, 3) + beats_of(1, 1, 10, 5, 9))) == 1


def test_fences_that_follow_each_other_and_two_requests_at_once_are_none() -> None:
    assert find_double_runs(beats_of(1, 1, 10, 0, 4) + beats_of(1, 2, 20, 5, 9) + beats_of(2, 1, 30, 0, 9)) == []


def test_a_silence_longer_than_the_limit_is_told() -> None:
    beats = beats_of(0, 1, 10, 0, 2) + beats_of(0, 1, 10, 40, 41) + beats_of(1, 1, 11, 0, 1)
    assert find_gaps(beats, 3.0) == ["machine 0 as 10 was silent for 3.8 s"]
    assert find_gaps(beats, 4.0) == []


def test_two_processes_tell_apart_though_each_has_the_same_pid_in_its_namespace(tmp_path: Path) -> None:
    file = tmp_path / "beats"
    alone = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    for _ in range(2):
        subprocess.run((*alone, *beat_argv(file, 7, 3, 1)), check=True, stdout=subprocess.DEVNULL)
    assert len({beat.pid for beat in read_beats(file)}) == 2


def test_a_job_beats_as_often_as_it_was_told_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "beats"
    assert read_beats(file) == []
    told = subprocess.run(beat_argv(file, 7, 3, 2), capture_output=True, text=True, check=True)
    with file.open("a") as out:
        out.write("123 7")
    assert [(beat.machine, beat.fence) for beat in read_beats(file)] == [(7, 3), (7, 3)]
    assert told.stdout == "beat 1\nbeat 2\n"
