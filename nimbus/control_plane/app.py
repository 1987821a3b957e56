"""The control plane put together: services opened, routes registered, sweepers running. No rule lives here.

The sweepers are children of the nursery in `open_app`: if one crashes, the process ends. Called by main.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from quart import Blueprint

from nimbus.control_plane.access import require_metrics_access
from nimbus.control_plane.demand.inbox import measure_inbox
from nimbus.control_plane.duties import note_duties
from nimbus.control_plane.forge import open_forge, plan_demand
from nimbus.control_plane.hosts.agents import judge_agents
from nimbus.control_plane.hosts.agents_api import build_agents_api, hear_directly
from nimbus.control_plane.hosts.hosts import SILENT, count_states
from nimbus.control_plane.hosts.hosts_api import build_hosts_api
from nimbus.control_plane.hosts.mirror_database import keep_mirror
from nimbus.control_plane.jobs.joblist_api import build_joblist_api
from nimbus.control_plane.jobs.jobs import count_queue
from nimbus.control_plane.jobs.jobs_api import build_jobs_api
from nimbus.control_plane.jobs.machinelinks import build_machinelinks_api
from nimbus.control_plane.keys.api import build_keys_api
from nimbus.control_plane.keys.cachetokens import CacheTerms
from nimbus.control_plane.keys.revocation import build_revocation_api, follow_denied, refresh_denied
from nimbus.control_plane.keys.ring import KeyTerms
from nimbus.control_plane.keys.rotation import GivenKeys, open_keychain, sweep_keys
from nimbus.control_plane.keys.shared import list_shared_keys
from nimbus.control_plane.metrics import Metrics
from nimbus.control_plane.migrate import migrate
from nimbus.control_plane.openapi.health import GET_HEALTH, GET_METRICS, GET_READINESS
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.openapi.route import build_document_api
from nimbus.control_plane.orgs.masks import reseal_masks
from nimbus.control_plane.orgs.masks_api import build_masks_api
from nimbus.control_plane.orgs.problems import count_problems
from nimbus.control_plane.orgs.seals import Seals
from nimbus.control_plane.queue.silence import sweep_leases
from nimbus.control_plane.queue.waitroom import run_waitroom
from nimbus.control_plane.services import AccessPolicy, HostTerms, JobRules, LeaseTerms, Services
from nimbus.control_plane.settings import Settings
from nimbus.model.lease import LeasePolicy
from nimbus.runtime.limiter import WithoutRedis, open_limiter
from nimbus.runtime.nonces import open_nonces
from nimbus.runtime.postgres import Transaction, open_database
from nimbus.runtime.proxies import Networks, parse_networks
from nimbus.runtime.redis import open_bell
from nimbus.runtime.serving import App, Response, build_app, json_response
from nimbus.runtime.settings import read_shared
from nimbus.wire.cachetokens import derive_cache_key
from nimbus.wire.tokens import hmac_key

MAX_BODY_BYTES = 25 * 1024 * 1024  # GitHub's own limit for a webhook


@asynccontextmanager
async def open_services(settings: Settings, stopping: trio.Event) -> AsyncIterator[Services]:
    """Database (migrated), keys and bell, for as long as the body runs."""
    dsn = settings.database_url.get_secret_value()
    async with open_database(dsn, settings.database_pool_size) as database:
        await migrate(database)
        keys = await open_keychain(database, plan_keys(settings), plan_given_keys(settings))
        redis_url = settings.redis_url.get_secret_value()
        without_redis = WithoutRedis(settings.rate_limit_without_redis)
        async with (
            open_bell(redis_url, database.bridge) as bell,
            open_nonces(redis_url, database.bridge) as nonces,
            open_limiter(redis_url, database.bridge, without_redis) as limiter,
        ):
            yield Services(
                database=database,
                bell=bell,
                keys=keys,
                metrics=Metrics(),
                access=plan_access(settings),
                nonces=nonces,
                limiter=limiter,
                cache_terms=plan_cache(settings),
                seals=Seals(read_shared(settings, "jwt_secret")),
                lease_terms=plan_leases(settings),
                job_rules=plan_jobs(settings),
                host_terms=HostTerms(settings.agent_heartbeat_interval, settings.agent_min_version),
                log_url=None if settings.log_public_url is None else ingest_url(settings.log_public_url),
                stopping=stopping,
            )


def plan_access(settings: Settings) -> AccessPolicy:
    """Pure: the part of the settings that decides who comes in."""
    token = settings.metrics_token
    return AccessPolicy(
        admin_keys=tuple(map(hmac_key, settings.jwt_secrets)),
        enrolment_keys=tuple(map(hmac_key, settings.agent_secrets)),
        shared_keys=list_shared_keys(settings.shared_secrets),
        allowed_subjects=settings.allowed_subjects,
        metrics_token=None if token is None else token.get_secret_value(),
        agent_token_ttl_s=settings.agent_token_ttl,
        agent_token_rate_limit=settings.agent_token_rate_limit,
        agent_token_rate_interval_s=settings.agent_token_rate_interval,
    )


def plan_cache(settings: Settings) -> CacheTerms:
    """Pure: what signs the tokens with which jobs reach their org's stored things."""
    return CacheTerms(derive_cache_key(settings.cache_secrets[0]), settings.cache_token_ttl)


def plan_keys(settings: Settings) -> KeyTerms:
    """Pure: the part of the settings that decides how keys come and go."""
    return KeyTerms(
        publish_lead_s=settings.key_publish_lead,
        jwks_max_age_s=settings.jwks_max_age,
        refresh_s=settings.key_refresh_interval,
        rotation_interval_s=settings.key_rotation_interval,
        agent_token_ttl_s=settings.agent_token_ttl,
    )


def plan_given_keys(settings: Settings) -> GivenKeys | None:
    """Pure: the keys that the operator gives, where any signs."""
    given = (settings.signing_key, settings.signing_key_next, settings.signing_key_previous)
    current, coming, gone = (None if key is None else key.get_secret_value() for key in given)
    return None if current is None else GivenKeys(current, coming, gone)


def plan_leases(settings: Settings) -> LeaseTerms:
    """Pure: the part of the settings that decides how long leases last and how often work is tried."""
    return LeaseTerms(
        policy=LeasePolicy(settings.job_lease_ttl),
        in_progress_ttl_s=settings.job_in_progress_lease_ttl,
        max_attempts=settings.job_max_attempts,
        look_s=settings.lease_look_interval,
        patience_s=settings.wake_patience,
        starvation_s=settings.starvation_after,
        sweep_s=settings.lease_sweep_interval,
    )


def plan_jobs(settings: Settings) -> JobRules:
    """Pure: the part of the settings that jobs meet."""
    return JobRules(
        rate_limit=settings.org_job_rate_limit,
        rate_interval_s=settings.org_rate_interval,
        default_image=settings.default_image,
        stolen_limit=settings.stolen_limit,
        aging_s=settings.priority_aging,
        sizes=plan_demand(settings).labels,
    )


def ingest_url(public_url: str) -> str:
    """Where agents send output: the logging pipeline's base address or its ingest route are both accepted."""
    base = public_url.rstrip("/")
    return base if base.endswith("/ingest") else f"{base}/ingest"


@asynccontextmanager
async def open_app(settings: Settings, stopping: trio.Event) -> AsyncIterator[App]:
    """The application with its services open and its sweepers running."""
    async with (
        open_services(settings, stopping) as services,
        open_forge(settings, services.metrics.github) as forge,
        trio.open_nursery() as sweepers,
    ):
        await refresh_denied(services)  # before the first request: a revoked token has no second chance at a restart
        await judge_agents(services)
        await reseal_masks(services)
        mirror = settings.agent_state_database_url
        await sweepers.start(keep_mirror, services, None if mirror is None else mirror.get_secret_value())
        sweepers.start_soon(sweep_leases, services)
        sweepers.start_soon(follow_denied, services)
        sweepers.start_soon(sweep_keys, services)
        sweepers.start_soon(forge.sweep, services)
        sweepers.start_soon(run_waitroom, services)
        app = build_control_plane(services, parse_networks(settings.trusted_proxies))
        forge.register(app, services)
        yield app
        sweepers.cancel_scope.cancel()


def build_control_plane(services: Services, trusted_proxies: Networks = ()) -> App:
    """Every route of the control plane, on these services."""
    app = build_app("nimbus.control_plane", max_body_bytes=MAX_BODY_BYTES, trusted_proxies=trusted_proxies)
    app.register_blueprint(build_agents_api(services))
    hear_directly(app, services)
    app.register_blueprint(build_hosts_api(services))
    app.register_blueprint(build_jobs_api(services))
    app.register_blueprint(build_joblist_api(services))
    app.register_blueprint(build_machinelinks_api(services))
    app.register_blueprint(build_revocation_api(services))
    app.register_blueprint(build_keys_api(services))
    app.register_blueprint(build_masks_api(services))
    app.register_blueprint(build_health_api(services))
    app.register_blueprint(build_document_api(app))
    return app


def build_health_api(services: Services) -> Blueprint:
    """Health, readiness and metrics."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    @declare(GET_HEALTH)
    async def healthz() -> Response:
        await trio.lowlevel.checkpoint()
        return json_response({"status": "ok"})

    @blueprint.get("/readyz")
    @declare(GET_READINESS)
    async def readyz() -> Response:
        await services.database.run(_ask)
        return json_response({"status": "ready", "bell": services.bell.state})

    @blueprint.get("/metrics")
    @declare(GET_METRICS)
    async def metrics() -> Response:
        require_metrics_access(services.access)
        counts = await count_queue(services, None)
        for state, count in dict(counts["machines"]).items():  # type: ignore[call-overload]
            services.metrics.machines.labels(state).set(count)
        await measure_inbox(services)
        services.metrics.hosts.note(await count_states(services), SILENT)
        services.metrics.bell_connected.set(services.bell.connected)
        services.metrics.agents_waiting.set(len(services.room))
        await count_problems(services)
        services.metrics.limiter_without_redis.set(services.limiter.away)
        await note_duties(services)
        return Response(services.metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return blueprint


async def _ask(transaction: Transaction) -> None:
    await transaction.fetchval("SELECT 1")
