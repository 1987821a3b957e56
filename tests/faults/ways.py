"""The ways to a running job that a campaign strikes: the fake VMM's, and those of our own Firecracker and its jailer.

Called by strike.py, campaign.py and case.py.
"""

from __future__ import annotations

import enum


class Way(enum.StrEnum):
    """How the struck machine comes up."""

    FAKE = "fake"  # the fake VMM, cold
    BOOT = "boot"  # our Firecracker under our jailer, cold; the rest are on it too
    RESTORE = "restore"  # a clone of a template that was there before
    BUILT = "pool-built"  # claimed from the pool of an agent, which a job finds filled
    PRESPAWNED = "pool-prespawned"
    WARM = "pool-warm"
    TEMPLATE = "pool-template"  # the same as warm, but the pool has to build the template first

    @property
    def pool(self) -> str:
        """NIMBUS_POOL."""
        kind = {Way.BUILT: "built", Way.PRESPAWNED: "prespawned", Way.WARM: "warm", Way.TEMPLATE: "warm"}.get(self)
        return "" if kind is None else f"1x256x2048 {kind}=1"

    @property
    def has_template(self) -> bool:
        """Whether one is there when the agent starts."""
        return self not in (Way.FAKE, Way.BOOT, Way.TEMPLATE)


# What a clean run must have met, or it was another way: a template that is not used leaves only a cold boot.
_BUILD = "host_agent.snapshots.build._open_machine"
_LOAD = "host_agent.vmm.firecracker.Firecracker.load"
_CLAIM = "host_agent.pool.member.take_over"
MUST_MEET: dict[Way, frozenset[str]] = {
    Way.FAKE: frozenset(),
    Way.BOOT: frozenset({"host.chroots.new_chroot", "host_agent.vmm.firecracker.Firecracker.run"}),
    Way.RESTORE: frozenset({_LOAD}),
    Way.BUILT: frozenset({_LOAD, _CLAIM}),
    Way.PRESPAWNED: frozenset({_LOAD, _CLAIM}),
    Way.WARM: frozenset({_LOAD, _CLAIM}),
    Way.TEMPLATE: frozenset({_LOAD, _CLAIM, _BUILD}),
}
