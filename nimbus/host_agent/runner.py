"""What a leased machine runs: the command of the grant, or GitHub's runner with a registration minted late.

The agent never calls GitHub and holds none of its secrets: the control plane mints, records and
deregisters; the guest gets its own JIT config and nothing more. Called by machines.py once per machine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from nimbus.host_agent.control import ControlPlane
from nimbus.model.vm import Command
from nimbus.wire.leaseapi import Grant


class Limits(Protocol):
    """The host's limits on any command."""

    @property
    def timeout_s(self) -> float: ...

    @property
    def grace_s(self) -> float: ...


async def ask_command(control: ControlPlane, limits: Limits, grant: Grant) -> Command:
    """The guest's command. Raises Gone where the demand for a runner went away meanwhile."""
    if grant.command is not None:
        asked_s = grant.command.timeout_s
        timeout_s = limits.timeout_s if asked_s is None else min(asked_s, limits.timeout_s)
        return replace(grant.command, timeout_s=timeout_s, grace_s=limits.grace_s)
    reply = await control.mint_runner(grant.key)
    return Command(reply.argv, reply.env, timeout_s=limits.timeout_s, grace_s=limits.grace_s)
