"""What an operator sets for a host, read strictly."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from nimbus.host.blockdevice import find_disk
from nimbus.host.cgroup import IoLimit
from nimbus.host_agent.settings import (
    HostSettings,
    check_io,
    check_limits,
    find_io_limit,
    find_nameserver,
    parse_guest_ports,
    parse_labels,
)
from nimbus.model.errors import HostFault, Refused
from nimbus.model.vm import HostPort


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nameserver 127.0.0.53\n", IPv4Address("127.0.0.53")),
        ("# nameserver 9.9.9.9\nsearch lan\nnameserver fe80::1\nnameserver 10.0.0.2\n", IPv4Address("10.0.0.2")),
        ("nameserver\n", None),
        ("", None),
    ],
)
def test_guests_ask_the_hosts_own_first_nameserver(text: str, found: IPv4Address | None, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    assert find_nameserver(path) == found


def test_a_host_without_resolv_conf_gives_its_guests_none(tmp_path: Path) -> None:
    assert find_nameserver(tmp_path / "absent") is None


def test_guest_ports_are_read_in_their_order() -> None:
    loopback = IPv4Address("127.0.0.1")
    assert parse_guest_ports("8080=127.0.0.1:80, 9=127.0.0.1:9,") == (
        HostPort(8080, loopback, 80),
        HostPort(9, loopback, 9),
    )


@pytest.mark.parametrize("text", ["8080", "x=127.0.0.1:80", "0=127.0.0.1:80", "80=127.0.0.1:65536", "80=host:80"])
def test_any_other_guest_port_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_guest_ports(text)


def test_a_hosts_labels_are_those_of_the_control_planes_own_variable() -> None:
    assert parse_labels("Nimbus, gpu,") == ("nimbus", "gpu")


def test_a_host_without_a_label_is_refused_since_it_would_be_offered_every_job() -> None:
    with pytest.raises(Refused, match="NIMBUS_JOB_LABELS"):
        parse_labels(" , ")


def test_a_host_that_cannot_limit_its_vms_is_refused_where_limits_are_demanded() -> None:
    check_limits(())
    with pytest.raises(HostFault, match="NIMBUS_REQUIRE_LIMITS is set, and cgroup v2 lacks the controllers cpu, pids"):
        check_limits(("cpu", "pids"))


def test_a_host_that_cannot_limit_input_and_output_is_refused_where_that_is_demanded() -> None:
    check_io(IoLimit("8:0", 1 << 20), offered=True)
    with pytest.raises(HostFault, match="lacks the controller io"):
        check_io(IoLimit("8:0", 1 << 20), offered=False)
    with pytest.raises(HostFault, match="lies on no disk"):
        check_io(None, offered=True)


def test_a_limit_of_input_and_output_is_one_of_the_disk_below_the_state_folder(tmp_path: Path) -> None:
    assert find_io_limit(HostSettings(state_dir=tmp_path)) is None
    assert find_io_limit(HostSettings(state_dir=Path("/proc/none"), vm_io_bps=1)) is None
    found = find_io_limit(HostSettings(state_dir=tmp_path, vm_io_iops=500))
    disk = find_disk(tmp_path)
    assert found == (IoLimit(disk, operations_per_s=500) if disk else None)
