"""Modules come in an order in which they load, with all that they need."""

from __future__ import annotations

import gzip
import lzma
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import HostFault
from nimbus.rootfs.modules import read_dependencies, select_modules
from tests.unit.rootfs.samples import module

NET = {
    "lib/modules/1/kernel/net/virtio_net.ko": module("net_failover,virtio"),
    "lib/modules/1/kernel/net/net_failover.ko": module("failover"),
    "lib/modules/1/kernel/net/failover.ko": module(),
    "lib/modules/1/kernel/virtio/virtio.ko": module("virtio_ring"),
    "lib/modules/1/kernel/virtio/virtio_ring.ko": module(),
    "lib/modules/1/kernel/char/virtio-rng.ko": module("virtio"),
    "lib/modules/1/kernel/char/unused.ko": module(),
}


def names_of(wanted: tuple[str, ...], builtin: tuple[str, ...] = ()) -> list[str]:
    return [chosen.name for chosen in select_modules(NET, builtin, wanted)]


def test_a_module_comes_after_all_that_it_depends_on() -> None:
    assert names_of(("virtio_net",)) == ["failover", "net_failover", "virtio_ring", "virtio", "virtio_net"]


def test_a_module_needed_twice_comes_once() -> None:
    assert names_of(("virtio_net", "virtio_rng")).count("virtio") == 1


def test_a_dash_in_a_file_name_is_an_underscore_in_the_modules_name() -> None:
    chosen = select_modules(NET, (), ("virtio_rng",))[-1]
    assert chosen.file_name == "virtio_rng.ko"


def test_what_the_kernel_has_built_in_is_left_out() -> None:
    assert names_of(("virtio_net",), ("kernel/net/failover.ko", "kernel/net/net_failover.ko")) == [
        "virtio_ring",
        "virtio",
        "virtio_net",
    ]


def test_a_missing_module_is_named_with_what_wanted_it() -> None:
    with pytest.raises(HostFault, match=r"no module gone \(wanted for needs\)"):
        select_modules({"needs.ko": module("gone")}, (), ("needs",))


def test_a_ring_of_dependencies_ends() -> None:
    files = {"a.ko": module("b"), "b.ko": module("a")}
    with pytest.raises(HostFault, match="a -> b -> a"):
        select_modules(files, (), ("a",))


@pytest.mark.parametrize(("ending", "packed"), [(".xz", lzma.compress(module())), (".gz", gzip.compress(module()))])
def test_a_packed_module_is_unpacked(ending: str, packed: bytes) -> None:
    (chosen,) = select_modules({f"overlay.ko{ending}": packed}, (), ("overlay",))
    assert (chosen.file_name, chosen.content) == ("overlay.ko", module())


def test_a_damaged_packed_module_is_the_hosts_fault() -> None:
    with pytest.raises(HostFault, match="cannot be unpacked"):
        select_modules({"overlay.ko.xz": b"\xfd7zXZ\0 no"}, (), ("overlay",))


def test_the_dependencies_are_read_from_the_module_itself() -> None:
    assert read_dependencies(module("virtio-ring,virtio")) == ("virtio_ring", "virtio")
    assert read_dependencies(module()) == ()


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: module("a")[:64] + tail))
def test_bytes_that_are_no_module_never_fail_in_another_way(content: bytes) -> None:
    with suppress(HostFault):
        assert all(isinstance(name, str) for name in read_dependencies(content))
