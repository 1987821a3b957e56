"""Tracked connections of one address, forgotten when its slot goes to the next tenant.

The kernel picks the entries (filter by source, Linux 5.8 and newer), so a busy host's table is not copied.
Never touches another address. Called by host_agent/network.py.
"""

from __future__ import annotations

import errno
import os
from ipaddress import IPv4Address

from pyroute2.conntrack import Conntrack
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from nimbus.model.errors import HostFault


def flush_connections(source: IPv4Address) -> int:
    """Forget every connection that `source` opened; returns how many there were."""
    try:
        with Conntrack() as table:
            entries = list(table.dump_entries(tuple_orig=NFCTAttrTuple(saddr=str(source))))
            return sum(_forget(table, entry.tuple_orig) for entry in entries)
    except NetlinkError as error:
        raise HostFault(f"connections of {source} could not be forgotten ({os.strerror(error.code)})") from error
    except OSError as error:
        raise HostFault(f"connections of {source} could not be forgotten ({error.strerror})") from error


def _forget(table: Conntrack, original: NFCTAttrTuple) -> bool:
    try:
        table.entry("del", tuple_orig=original)
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # it expired meanwhile
            raise
        return False
    return True
