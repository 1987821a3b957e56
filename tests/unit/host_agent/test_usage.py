"""What a VM has used, from folders laid out as the kernel lays them out, with and without the controllers."""

from __future__ import annotations

import os
from pathlib import Path

from nimbus.host_agent.usage import MemoryEvents, read_disk, read_memory, read_memory_events, read_traffic

MIB = 2**20


def test_memory_is_what_the_controller_says_where_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("123456\n")
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert read_memory(tmp_path) == 123456


def test_without_the_controller_memory_is_what_the_leafs_processes_have_resident(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    held = read_memory(tmp_path)
    assert held is not None
    assert MIB < held < 4096 * MIB


def test_a_process_that_ended_meanwhile_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n4194305\n")  # above the kernel's highest pid
    assert read_memory(tmp_path) is not None
    (tmp_path / "cgroup.procs").write_text("4194305\n")
    assert read_memory(tmp_path) is None


def test_what_is_not_there_is_unknown_and_no_error(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert read_memory(gone) is None
    assert read_disk(gone) is None
    assert read_traffic(gone) == (None, None)
    assert read_memory_events(gone) == MemoryEvents()


def test_strange_content_is_unknown_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("max\n")
    (tmp_path / "memory.events").write_bytes(b"oom_kill\noom \xff\n\noom_kill x\n")
    assert read_memory(tmp_path) is None
    assert read_memory_events(tmp_path / "memory.events") == MemoryEvents()


def test_a_disk_has_used_its_blocks_and_not_its_length(tmp_path: Path) -> None:
    disk = tmp_path / "overlay.img"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
        file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    used = read_disk(disk)
    assert used is not None
    assert MIB <= used < 2 * MIB


def test_what_the_hosts_end_sends_is_what_the_guest_receives(tmp_path: Path) -> None:
    (tmp_path / "statistics").mkdir()
    (tmp_path / "statistics" / "tx_bytes").write_text("10\n")
    (tmp_path / "statistics" / "rx_bytes").write_text("20\n")
    assert read_traffic(tmp_path) == (10, 20)


def test_deaths_for_memory_are_told_from_limits_that_were_only_reached(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 31\noom 2\noom_kill 0\noom_group_kill 0\n")
    assert read_memory_events(events) == MemoryEvents(kills=0, own_limit=2)
    events.write_text("low 0\nhigh 0\nmax 40\noom 3\noom_kill 4\noom_group_kill 1\n")
    assert read_memory_events(events) == MemoryEvents(kills=4, own_limit=3)


def test_a_kernel_that_does_not_count_group_kills_is_understood(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("max 1\noom 0\noom_kill 1\n")
    assert read_memory_events(events) == MemoryEvents(kills=1, own_limit=0)
