"""What finds demand that no webhook brought, put together: redelivery, polling, and the list of installations.

Each is a duty of one process at a time and can be switched off alone. No rule lives here; forge.py runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import trio

from nimbus.control_plane.demand import installations, polling, redelivery
from nimbus.control_plane.demand.demand import DemandRules
from nimbus.control_plane.demand.installations import InstallationRules, list_all
from nimbus.control_plane.demand.poll_rules import PASSES, PollRules
from nimbus.control_plane.demand.polling import Poller
from nimbus.control_plane.demand.redelivery import RedeliveryRules, ask_again
from nimbus.control_plane.duties import DutyTerms, sweep_duty
from nimbus.control_plane.github.client import GithubClient
from nimbus.control_plane.services import Services
from nimbus.control_plane.settings import Settings


@dataclass(frozen=True)
class RepairRules:
    """How often each of the three is done; 0 leaves it out."""

    redelivery: RedeliveryRules = field(default_factory=RedeliveryRules)
    poll: PollRules = field(default_factory=PollRules)
    installations: InstallationRules = field(default_factory=InstallationRules)
    duty_ttl_s: float = 60.0


def plan_repair(settings: Settings) -> RepairRules:
    """Pure: the part of the settings that repairs go by."""
    return RepairRules(
        redelivery=RedeliveryRules(settings.redelivery_interval, settings.redelivery_window),
        poll=PollRules(
            interval_s=settings.poll_interval,
            idle_after_s=settings.poll_idle_after,
            idle_interval_s=settings.poll_idle_interval,
            reserve=settings.github_reserve,
        ),
        installations=InstallationRules(settings.installations_interval),
        duty_ttl_s=settings.duty_ttl,
    )


async def sweep_repair(services: Services, github: GithubClient, demand: DemandRules, rules: RepairRules) -> None:
    """Do each of them when it is due until cancelled."""
    ttl_s = rules.duty_ttl_s
    async with trio.open_nursery() as nursery:
        if rules.installations.interval_s:
            terms = DutyTerms(installations.NAME, rules.installations.interval_s, ttl_s)
            nursery.start_soon(sweep_duty, services, terms, partial(list_all, services, github))
        if rules.redelivery.interval_s:
            terms = DutyTerms(redelivery.NAME, rules.redelivery.interval_s, ttl_s)
            nursery.start_soon(sweep_duty, services, terms, partial(ask_again, services, github, rules.redelivery))
        if rules.poll.interval_s:
            terms = DutyTerms(polling.NAME, rules.poll.interval_s / PASSES, ttl_s)
            poller = Poller(services, github, demand, rules.poll)
            nursery.start_soon(sweep_duty, services, terms, poller.poll)
