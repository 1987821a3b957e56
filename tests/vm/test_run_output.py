"""Output by the hundred megabytes: `nimbus run` counts every byte and stays small itself."""

from __future__ import annotations

import pytest

from tests.vm.terminal import Started, Terminal, peak_rss_mib

pytestmark = [pytest.mark.vm, pytest.mark.root]

SIZE_BYTES = 100_000_000  # `make soak-run` counts 300 MB and 1 GiB
RSS_LIMIT_MIB = 150


@pytest.mark.slow
def test_a_hundred_megabytes_are_counted_exactly_in_little_memory(terminal: Terminal) -> None:
    with terminal.start("--", "head", "-c", str(SIZE_BYTES), "/dev/zero") as process:
        count, peak_mib = count_output(process)
        assert process.wait(60) == 0
    assert count == SIZE_BYTES
    assert 0 < peak_mib < RSS_LIMIT_MIB


def test_a_slow_reader_slows_the_guest_and_not_the_host(terminal: Terminal) -> None:
    with terminal.start("--", "yes") as process:
        assert process.stdout is not None
        told = process.stdout.read(1 << 20)
        before_mib = peak_rss_mib(process.pid)
        # Nobody reads from here on: what the guest has left to say waits in the guest, whatever it does.
        assert process.poll() is None
        told += process.stdout.read(1 << 20)
        assert told == b"y\n" * (1 << 20)
        assert peak_rss_mib(process.pid) - before_mib < 32
        process.terminate()
        process.stdout.close()
        assert process.wait(30) in {128 + 13, 128 + 15}  # whichever came first


def count_output(process: Started) -> tuple[int, int]:
    """Bytes on stdout until it closes, and the most memory that the process held meanwhile."""
    assert process.stdout is not None
    count = peak_mib = 0
    while chunk := process.stdout.read1(1 << 20):  # type: ignore[attr-defined] # a BufferedReader, typed as IO[bytes]
        count += len(chunk)
        peak_mib = max(peak_mib, peak_rss_mib(process.pid))
    return count, peak_mib
