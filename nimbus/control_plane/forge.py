"""GitHub's side of the control plane put together: client, rules, routes, sweepers. No rule lives here.

app.py opens it beside the services; tests do the same with a fake GitHub's address.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from nimbus.control_plane.demand.admission import serve_admission, sweep_demand
from nimbus.control_plane.demand.demand import DemandRules, RunnerLevel
from nimbus.control_plane.demand.inbox import InboxRules, serve_inbox, sweep_inbox
from nimbus.control_plane.demand.intake import Intake
from nimbus.control_plane.demand.repair import RepairRules, plan_repair, sweep_repair
from nimbus.control_plane.demand.webhooks import WebhookRules, register_webhooks
from nimbus.control_plane.github.client import AppCredentials, GithubClient, open_github
from nimbus.control_plane.github.limits import LimitTerms
from nimbus.control_plane.github.transport import Observer
from nimbus.control_plane.orgs.orgs_api import build_orgs_api
from nimbus.control_plane.runners.registrations import Registrar, Registration, RunnerRules, sweep_registrations
from nimbus.control_plane.runners.roster import sweep_rosters
from nimbus.control_plane.runners.runners import build_runners_api
from nimbus.control_plane.services import Services
from nimbus.control_plane.settings import Settings
from nimbus.model.labels import LabelRules
from nimbus.runtime.serving import App


@dataclass(frozen=True)
class Forge:
    """What the routes and sweepers need besides the services."""

    github: GithubClient
    webhooks: WebhookRules
    demand: DemandRules
    inbox: InboxRules = field(default_factory=InboxRules)
    intake: Intake = field(default_factory=Intake)
    runners: RunnerRules = field(default_factory=RunnerRules)
    repair: RepairRules = field(default_factory=RepairRules)

    def registrar(self, services: Services) -> Registrar:
        return Registrar(services, self.github, self.demand, self.runners)

    def register(self, app: App, services: Services) -> None:
        """Add GitHub's routes to the application."""
        register_webhooks(app, services, self.webhooks, self.intake)
        app.register_blueprint(build_runners_api(self.registrar(services)))
        app.register_blueprint(build_orgs_api(services, self.demand))

    async def sweep(self, services: Services) -> None:
        """Run the inbox and the sweepers until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.intake.run, services)
            nursery.start_soon(serve_inbox, services, self.demand, self.inbox)
            nursery.start_soon(sweep_inbox, services, self.inbox)
            nursery.start_soon(sweep_demand, services, self.demand)
            nursery.start_soon(serve_admission, services, self.demand)
            nursery.start_soon(sweep_registrations, self.registrar(services))
            nursery.start_soon(sweep_rosters, self.registrar(services))
            nursery.start_soon(sweep_repair, services, self.github, self.demand, self.repair)


def plan_webhooks(settings: Settings) -> WebhookRules:
    """Pure: which signatures are believed."""
    previous = settings.github_webhook_secret_previous
    return WebhookRules(
        secrets=tuple(
            secret.get_secret_value() for secret in (settings.github_webhook_secret, previous) if secret is not None
        ),
        timestamp_required=settings.webhook_timestamp_required,
        timestamp_tolerance_s=settings.webhook_timestamp_tolerance,
    )


def plan_demand(settings: Settings) -> DemandRules:
    """Pure: which jobs are ours and what machine they get."""
    return DemandRules(
        labels=LabelRules(
            labels=settings.labels,
            image=settings.default_image,
            max_cpus=settings.label_max_cpus,
            max_memory_gb=settings.label_max_memory_gb,
            max_disk_gb=settings.label_max_disk_gb,
        ),
        level=RunnerLevel(settings.runner_level),
        default_installation_id=settings.github_app_installation_id,
        stolen_limit=settings.stolen_limit,
        aging_s=settings.priority_aging,
        sweep_s=settings.demand_interval,
        pause_s=settings.demand_pause,
        untold_s=max(settings.poll_interval, settings.redelivery_interval) + settings.repair_takes,
    )


def plan_inbox(settings: Settings) -> InboxRules:
    """Pure: when deliveries are looked for, tried again and forgotten."""
    return InboxRules(
        retention_s=settings.delivery_retention,
        look_s=settings.inbox_look_interval,
        claim_s=settings.inbox_claim,
        retry_s=settings.inbox_retry,
        sweep_s=settings.inbox_sweep_interval,
    )


def plan_runners(settings: Settings) -> RunnerRules:
    """Pure: how runners are registered, and how long they may do nothing."""
    return RunnerRules(
        registration=Registration(settings.runner_registration),
        argv=settings.runner_argv,
        group_id=settings.runner_group_id,
        web_url=settings.github_url,
        idle_limit_s=settings.runner_idle_limit,
        end_limit_s=settings.runner_end_limit,
        sweep_s=settings.runner_sweep_interval,
        zombie_age_s=settings.runner_zombie_age,
        duty_ttl_s=settings.duty_ttl,
        reserve=settings.github_reserve,
    )


def plan_limits(settings: Settings) -> LimitTerms:
    """Pure: what we allow ourselves of GitHub's API."""
    return LimitTerms(
        places=settings.github_concurrency,
        points_per_minute=settings.github_write_points,
        reserve=settings.github_reserve,
        owner_retry_s=settings.github_owner_retry,
        penalty_s=settings.github_penalty,
    )


@asynccontextmanager
async def open_forge(settings: Settings, observer: Observer) -> AsyncIterator[Forge]:
    """GitHub, as the settings describe it, for as long as the body runs. Opening it sends nothing."""
    pem = settings.github_app_private_key.get_secret_value().replace("\\n", "\n")  # as environment files write it
    credentials = AppCredentials(str(settings.github_app_id), pem)
    async with open_github(settings.github_api_url, credentials, plan_limits(settings), observer) as github:
        yield Forge(
            github,
            plan_webhooks(settings),
            plan_demand(settings),
            plan_inbox(settings),
            runners=plan_runners(settings),
            repair=plan_repair(settings),
        )
