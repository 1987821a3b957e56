"""Threads that want the same act at once have it done for all; a fault or a hang among them stays its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from nimbus.host.together import Together
from nimbus.model.errors import HostFault

PATIENCE_S = 60.0


class Kernel:
    """Does what it is given; its first act waits until `gate` opens."""

    def __init__(self, *, bad: str = "") -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.acts: list[list[str]] = []
        self._bad = bad

    def __call__(self, names: list[str]) -> None:
        self.acts.append(names)
        if len(self.acts) == 1:
            self.begun.set()
            assert self.gate.wait(PATIENCE_S)
        if self._bad in names:
            raise HostFault(f"{self._bad} is bad")


def test_what_comes_while_the_first_is_done_is_done_in_one_act() -> None:
    kernel = Kernel()
    together = Together(kernel, PATIENCE_S)
    with ThreadPoolExecutor(16) as threads:
        first = threads.submit(together.do, "a")
        assert kernel.begun.wait(PATIENCE_S)
        names = [f"b{number}" for number in range(15)]
        others = [threads.submit(together.do, name) for name in names]
        while len(together._waiting) < len(others):
            pass
        kernel.gate.set()
        wait([first, *others])
    assert [sorted(act) for act in kernel.acts] == [["a"], sorted(names)]


def test_one_that_is_alone_is_done_at_once_and_told_its_own_error() -> None:
    kernel = Kernel(bad="b")
    kernel.gate.set()
    together = Together(kernel, PATIENCE_S)
    together.do("a")
    with pytest.raises(HostFault, match="b is bad"):
        together.do("b")
    together.do("c")
    assert kernel.acts == [["a"], ["b"], ["c"]]


def test_a_fault_of_one_is_told_to_that_one_alone() -> None:
    kernel = Kernel(bad="b1")
    together = Together(kernel, PATIENCE_S)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(together.do, "a")
        assert kernel.begun.wait(PATIENCE_S)
        others = [threads.submit(together.do, f"b{number}") for number in range(3)]
        while len(together._waiting) < len(others):
            pass
        kernel.gate.set()
        wait([first, *others])
    assert [type(future.exception()) for future in others] == [type(None), HostFault, type(None)]
    assert first.exception() is None


def test_whoever_waits_in_vain_for_one_that_hangs_goes_alone() -> None:
    kernel = Kernel()
    together = Together(kernel, 0.05)
    with ThreadPoolExecutor(2) as threads:
        hanging = threads.submit(together.do, "a")
        assert kernel.begun.wait(PATIENCE_S)
        together.do("b")
        assert not hanging.done()
        kernel.gate.set()
    assert ["b"] in kernel.acts
