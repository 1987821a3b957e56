"""A live fake GitHub for tests: real sockets, a real App key, port 0."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import jwt
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nimbus.runtime.http import open_http
from nimbus.sim.app import serve_sim
from nimbus.sim.deliveries import WebhookTarget
from nimbus.sim.forge import ForgePolicy
from nimbus.sim.world import World, WorldPlan
from nimbus.wire.github import app_jwt_claims
from tests.secretwatch import learn

APP_ID = "4711"
INSTALLATION_ID = 77
OWNER = "octo-org"


@dataclass(frozen=True)
class AppKey:
    """The GitHub App's key pair."""

    private_pem: str
    public_pem: str


@functools.cache
def app_key() -> AppKey:
    """One key for the whole test run: making one takes a while."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    learn("the key of the test's GitHub App", private.decode())
    return AppKey(private.decode(), public.decode())


@dataclass(frozen=True)
class Sim:
    """A running sim and a client for it."""

    url: str
    world: World
    http: httpx2.AsyncClient

    def app_headers(self, **claims: object) -> dict[str, str]:
        token = jwt.encode({**app_jwt_claims(APP_ID, time.time()), **claims}, app_key().private_pem, algorithm="RS256")
        return {"Authorization": f"Bearer {token}"}

    async def token_headers(
        self, body: dict[str, object] | None = None, *, installation_id: int = INSTALLATION_ID
    ) -> dict[str, str]:
        path = f"/app/installations/{installation_id}/access_tokens"
        answer = await self.http.post(path, headers=self.app_headers(), json=body or {})
        assert answer.status_code == 201, answer.text
        return {"Authorization": f"Bearer {answer.json()['token']}"}


@asynccontextmanager
async def open_sim(
    webhook: WebhookTarget | None = None,
    *,
    control_token: str | None = None,
    rate_limit: int = 5000,
    policy: ForgePolicy | None = None,
    more_owners: tuple[str, ...] = (),
    state_dir: Path | None = None,
    bind: str = "127.0.0.1:0",
) -> AsyncIterator[Sim]:
    """A sim, on a free port unless `bind` names one; stopped at the end."""
    plan = WorldPlan(
        owner=OWNER,
        repo="hello",
        app_id=APP_ID,
        app_public_key_pem=app_key().public_pem,
        installation_id=INSTALLATION_ID,
        public_url="",
        webhook=webhook,
        control_token=control_token,
        rate_limit=rate_limit,
        policy=policy or ForgePolicy(),
        more_owners=more_owners,
        state_dir=state_dir,
    )
    world, stop = World(plan), trio.Event()
    async with trio.open_nursery() as nursery:
        urls: list[str] = await nursery.start(serve_sim, world, [bind], stop)
        world.plan = replace(plan, public_url=urls[0])
        async with open_http(urls[0]) as http:
            yield Sim(urls[0], world, http)
        stop.set()
