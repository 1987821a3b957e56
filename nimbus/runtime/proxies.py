"""Which client a request is from, where trusted reverse proxies stand in front (NIMBUS_TRUSTED_PROXIES). Values only.

`X-Forwarded-For`, `-Proto` and `-Host` are believed from a peer among the trusted networks alone; anybody else may
write what they like, and it changes nothing. Each proxy appends the peer that it saw, so the hops are read from the
right and the first one that is not trusted is the client. The standard's `Forwarded` header is never believed.
serving.py asks for each request.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
Header = tuple[bytes, bytes]

FOR, PROTO, HOST = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"
MAX_HOPS = 32  # nobody has as many proxies; a longer list is somebody's game
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_PORT = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+))(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Origin:
    """Where a request comes from. `believed`: a trusted proxy spoke for it, and its headers are used up."""

    client: str
    scheme: str | None = None  # None: as the connection is
    host: str | None = None
    believed: bool = False


def parse_networks(text: str) -> Networks:
    """Networks from a comma-separated list of CIDRs and addresses; ValueError names the one that is wrong."""
    networks = []
    for word in (part.strip() for part in text.split(",")):
        if word:
            try:
                networks.append(ipaddress.ip_network(word))
            except ValueError as error:
                raise ValueError(f"{word[:64]!r} is no network like 10.0.0.0/8 or fd00::/8: {error}") from None
    return tuple(networks)


def find_origin(peer: str | None, headers: Iterable[Header], trusted: Networks) -> Origin:
    """Pure: who sent this request, as far as those say whom the operator trusts."""
    address = _parse(peer or "")
    if address is None or not _within(address, trusted):
        return Origin(peer or "")
    given: dict[bytes, list[str]] = {FOR: [], PROTO: [], HOST: []}
    for name, value in headers:
        if name in given:  # several lines are one list
            given[name] += value.decode("latin-1").split(",")
    client = _find_client(address, [hop.strip() for hop in given[FOR]], trusted)
    scheme = given[PROTO][-1].strip().lower() if given[PROTO] else ""
    host = given[HOST][-1].strip() if given[HOST] else ""
    return Origin(
        client=client,
        scheme=scheme if scheme in {"http", "https"} else None,
        host=host if _HOST.fullmatch(host) else None,
        believed=any(given.values()),
    )


def _find_client(peer: Address, hops: Sequence[str], trusted: Networks) -> str:
    """The rightmost hop that is not a trusted proxy. What cannot be read ends the walk: left of it all is hearsay.

    Empty where that makes this machine itself the last one known: it spoke for somebody, and must not pass for them.
    """
    client = peer
    for hop in reversed(hops[-MAX_HOPS:]):
        address = _parse(hop)
        if address is None:
            return "" if client.is_loopback else str(client)
        if address.is_loopback and not client.is_loopback:
            break  # another machine's own self is not this machine's
        client = address
        if not _within(address, trusted):
            break
    return str(client)


def _parse(text: str) -> Address | None:
    """An address, with or without a port; an IPv4 address that came by an IPv6 socket is IPv4."""
    with_port = _PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((with_port["six"] or with_port["four"]) if with_port else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _within(address: Address, networks: Networks) -> bool:
    return any(address.version == network.version and address in network for network in networks)
