"""How many machines of which shape wait for jobs: NIMBUS_POOL as values. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nimbus.model.errors import Refused
from nimbus.model.vm import Shape

_ENTRY = re.compile(r"([0-9]{1,3})x([0-9]{1,8})(?:x([0-9]{1,8}))?=([0-9]{1,4})/([0-9]{1,4})")


@dataclass(frozen=True)
class PoolSize:
    """Of one shape: how many wait with a VMM and no memory, and how many as paused clones."""

    shape: Shape
    prespawned: int
    warm: int

    @property
    def total(self) -> int:
        return self.prespawned + self.warm


@dataclass(frozen=True)
class PoolPolicy:
    """NIMBUS_POOL, NIMBUS_POOL_IMAGE and NIMBUS_POOL_TTL."""

    sizes: tuple[PoolSize, ...] = ()
    image: str = "base"
    ttl_s: float = 3600.0


def parse_pool(text: str) -> tuple[PoolSize, ...]:
    """`1x256x2048=2/1,4x8192=1/0`: CPUs x MiB of memory (x MiB of disk) = prespawned/warm. Raises Refused."""
    sizes = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        match = _ENTRY.fullmatch(word)
        if match is None:
            raise Refused(f"NIMBUS_POOL: {word!r} is not CPUSxMEMORY=PRESPAWNED/WARM, for example 1x256x2048=2/1")
        cpus, memory, disk, prespawned, warm = match.groups()
        usual = Shape()
        try:
            shape = Shape(int(cpus), int(memory), int(disk) if disk else usual.disk_mib)
        except Refused as error:
            raise Refused(f"NIMBUS_POOL: {word!r}: {error}") from None
        sizes.append(PoolSize(shape, int(prespawned), int(warm)))
    shapes = [size.shape for size in sizes]
    if len(set(shapes)) != len(shapes):
        raise Refused("NIMBUS_POOL names one shape twice")
    return tuple(sizes)
