"""The logging pipeline put together: store opened and migrated, writer running, routes registered. No rule lives here.

The writer is a child of the nursery in `open_services`: if it crashes, the process ends. Called by main.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from nimbus.logging_pipeline.access import HIDDEN, Access
from nimbus.logging_pipeline.directory import Directory
from nimbus.logging_pipeline.health import build_health_api
from nimbus.logging_pipeline.ingest.api import build_ingest_api, plan_intake
from nimbus.logging_pipeline.ingest.links import Links
from nimbus.logging_pipeline.ingest.masknet import MaskNet
from nimbus.logging_pipeline.ingest.stages import Stages
from nimbus.logging_pipeline.ingest.steps import Steps
from nimbus.logging_pipeline.ingest.unpacking import MAX_BODY_BYTES
from nimbus.logging_pipeline.ingest.writer import Writer
from nimbus.logging_pipeline.keys import KeySet
from nimbus.logging_pipeline.live.api import build_live_api
from nimbus.logging_pipeline.live.hub import Hub
from nimbus.logging_pipeline.live.tails import open_tails, plan_hub
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.plane import Plane
from nimbus.logging_pipeline.reading.api import build_read_api
from nimbus.logging_pipeline.reading.counting import build_count_api
from nimbus.logging_pipeline.reading.downloading import build_download_api
from nimbus.logging_pipeline.reading.searching import build_search_api
from nimbus.logging_pipeline.reading.turns import Turns
from nimbus.logging_pipeline.registered import MaskTerms, Registered
from nimbus.logging_pipeline.revoked import RevokedTokens
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.settings import Settings
from nimbus.logging_pipeline.store.bounds import plan_bounds
from nimbus.logging_pipeline.store.migrate import migrate
from nimbus.logging_pipeline.store.opening import open_store
from nimbus.runtime.http import open_http
from nimbus.runtime.proxies import Networks, parse_networks
from nimbus.runtime.retry import Backoff, retry_unavailable
from nimbus.runtime.serving import App, build_app
from nimbus.wire.tokens import hmac_key

_MIGRATE_TRIES = 8  # a server that is being started beside us gets about a minute


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """The store with its schema, the writer, the keys and the directory, for as long as the body runs."""
    keys = tuple(map(hmac_key, settings.jwt_secrets))
    token = settings.metrics_token
    async with open_store(settings) as table, open_http() as client, trio.open_nursery() as nursery:

        async def bring_up_to_date() -> None:
            await migrate(table, settings)

        await retry_unavailable(bring_up_to_date, Backoff(0.5, 15.0), _MIGRATE_TRIES)
        hub, metrics = Hub(plan_hub(settings)), Metrics()
        plane = Plane(client, settings.control_plane_url, keys[0])
        directory, revoked = Directory(plane), RevokedTokens(plane, settings.logging_revocation_interval, hub.wake_all)
        terms = MaskTerms(settings.logging_mask_refresh, settings.logging_mask_patience)
        registered = Registered(plane, terms, metrics.masks_missing.inc)
        masknet = MaskNet(registered, metrics.note_masked)
        table.health.on_trouble = metrics.note_trouble
        links = Links(plane, table)
        stages = Stages(publisher=hub, masks=masknet, marker=Steps(table.recall_steps), links=links)
        writer = Writer(table, stages, metrics, plan_intake(settings))
        nursery.start_soon(writer.run)
        nursery.start_soon(links.run)
        nursery.start_soon(registered.run)
        nursery.start_soon(revoked.run)
        async with open_tails(settings, table, hub, directory, revoked, metrics) as tails:
            yield Services(
                table=table,
                bounds=plan_bounds(settings),
                turns=Turns(settings.logging_query_org_limit),
                masknet=masknet,
                writer=writer,
                hub=hub,
                directory=directory,
                access=Access(
                    KeySet(client, settings.key_set_url),
                    revoked,
                    keys,
                    None if token is None else token.get_secret_value(),
                ),
                metrics=metrics,
                tails=tails,
            )
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_app(settings: Settings) -> AsyncIterator[App]:
    """The application with its services open."""
    async with open_services(settings) as services:
        yield build_logging_pipeline(services, parse_networks(settings.trusted_proxies))


def build_logging_pipeline(services: Services, trusted_proxies: Networks = ()) -> App:
    """Every route of the logging pipeline, on these services."""
    app = build_app("nimbus.logging_pipeline", max_body_bytes=MAX_BODY_BYTES, trusted_proxies=trusted_proxies)
    app.hidden_parameters = HIDDEN
    app.register_blueprint(build_ingest_api(services))
    app.register_blueprint(build_read_api(services))
    app.register_blueprint(build_search_api(services))
    app.register_blueprint(build_count_api(services))
    app.register_blueprint(build_download_api(services))
    app.register_blueprint(build_live_api(services))
    app.register_blueprint(build_health_api(services))
    return app
