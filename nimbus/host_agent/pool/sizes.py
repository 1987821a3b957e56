"""How many machines of which shape wait for jobs: NIMBUS_POOL as values. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nimbus.host_agent.vmm.machine import Stage
from nimbus.model.errors import Refused
from nimbus.model.vm import Shape

# What waits, and how far it is brought up: slot, network, disk and jail alone; a VMM without memory; a paused clone,
# whose guest has answered us once.
KINDS: Mapping[str, Stage | None] = {"built": None, "prespawned": Stage.SPAWNED, "warm": Stage.REHEARSED}
MOST = 1000  # of one kind and shape: more is a typing error

_SHAPE = re.compile(r"([0-9]{1,3})x([0-9]{1,8})(?:x([0-9]{1,8}))?")
_NUMBER = re.compile(r"([a-z]+)=([0-9]{1,4})")
_EXAMPLE = "for example: 1x256x2048 prespawned=2 warm=1; 4x8192 warm=1"


@dataclass(frozen=True)
class PoolSize:
    """Of one shape: how many of each kind wait."""

    shape: Shape
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class PoolPolicy:
    """NIMBUS_POOL, NIMBUS_POOL_IMAGE and NIMBUS_POOL_TTL."""

    sizes: tuple[PoolSize, ...] = field(default=())
    image: str = "base"
    ttl_s: float = 3600.0


def parse_pool(text: str) -> tuple[PoolSize, ...]:
    """`CPUSxMEMORY[xDISK] KIND=NUMBER ...; ...` with memory and disk in MiB. Raises Refused, naming what is wrong."""
    sizes = tuple(_parse_size(part) for part in text.split(";") if part.strip())
    shapes = [size.shape for size in sizes]
    for shape in shapes:
        if shapes.count(shape) > 1:
            raise Refused(f"NIMBUS_POOL names {shape.cpus}x{shape.mem_mib}x{shape.disk_mib} twice")
    return sizes


def _parse_size(part: str) -> PoolSize:
    words = part.split()
    match = _SHAPE.fullmatch(words[0])
    if match is None or len(words) < 2:
        raise Refused(f"NIMBUS_POOL: {part.strip()!r} is no shape with numbers; {_EXAMPLE}")
    cpus, memory, disk = match.groups()
    try:
        shape = Shape(int(cpus), int(memory), int(disk) if disk else Shape().disk_mib)
    except Refused as error:
        raise Refused(f"NIMBUS_POOL: {words[0]}: {error}") from None
    numbers: dict[str, int] = {}
    for word in words[1:]:
        told = _NUMBER.fullmatch(word)
        if told is None or told[1] not in KINDS or told[1] in numbers or int(told[2]) > MOST:
            raise Refused(f"NIMBUS_POOL: {word!r} is none of {', '.join(KINDS)} with a number; {_EXAMPLE}")
        numbers[told[1]] = int(told[2])
    return PoolSize(shape, numbers)
