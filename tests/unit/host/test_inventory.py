"""What a diff of two inventories says, and the tables of the kernel that feed it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from nimbus.host.inventory import Inventory, Leak, Territory, diff, parse_unix_sockets
from nimbus.model.errors import HostFault
from nimbus.model.ids import state_root_id


def test_only_what_came_is_a_leak_and_it_is_named_by_kind() -> None:
    before = Inventory(links=frozenset({"gone", "stays"}))
    after = Inventory(links=frozenset({"stays", "new"}), slots=frozenset({"3 held by nb000-00000001"}))
    leaks = diff(before, after)
    assert leaks == (Leak("links", "new"), Leak("slots", "3 held by nb000-00000001"))
    assert str(leaks[0]) == "links: new"


@pytest.mark.parametrize("kind", [kind.name for kind in fields(Inventory)])
def test_every_kind_takes_part_in_the_diff(kind: str) -> None:
    assert diff(Inventory(), Inventory(**{kind: frozenset({"x"})})) == (Leak(kind, "x"),)


def test_a_territory_is_known_by_the_id_of_its_state_root() -> None:
    territory = Territory(Path("/var/lib/nimbus"), Path("/run/nimbus"))
    assert territory.prefix == f"nb{state_root_id('/var/lib/nimbus')}-"


def test_a_relative_state_root_is_refused_instead_of_being_found_clean() -> None:
    with pytest.raises(HostFault, match="absolute"):
        Territory(Path("state"), Path("/run/nimbus"))


def test_unix_sockets_are_read_with_spaces_and_without_the_abstract_ones() -> None:
    table = (
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 1024 /srv/a path/link.sock\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 1025 @abstract\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 1026\n"
    )
    assert list(parse_unix_sockets(table)) == ["/srv/a path/link.sock"]
