"""Every key rotates under load, again and again: two control planes, a pipeline, and clients that never pause.

No request is refused that should pass, and none is let in that should not. Afterwards what was signed by keys that
are dropped or revoked, and by secrets that were changed, is refused everywhere.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from nimbus.wire.tokens import Audience
from tests.acceptance.fleet import Room, show
from tests.acceptance.keyclients import (
    Admin,
    Client,
    Doors,
    HostAgent,
    Stranger,
    bearer,
    each_has_gone_round,
    running_clients,
    sign,
)
from tests.acceptance.stack import clean_environment, wait_until
from tests.forge import APP_ID, app_key
from tests.services import PostgresServer, RedisServer, free_port, open_schema

pytestmark = [pytest.mark.services, pytest.mark.slow]

MAX_AGE_S, REFRESH_S, LEAD_S = 1, 1, 3
SHARED = ("NIMBUS_JWT_SECRET", "NIMBUS_AGENT_TOKEN_SECRET", "NIMBUS_CACHE_SHARED_SECRET")
CHANGES = 2  # of every shared secret


@dataclass
class Site:
    """Two control planes and a pipeline that can be restarted one after another."""

    planes: list[Room]
    pipeline: Room
    doors: Doors
    secrets: dict[str, str]
    old: list[dict[str, str]] = field(default_factory=list)

    @property
    def rooms(self) -> list[Room]:
        return [*self.planes, self.pipeline]

    def restart_all(self, env: dict[str, str]) -> None:
        """One control plane after another comes back with these secrets and no others; the pipeline with the second."""
        first, second = self.planes
        for rooms in ((first,), (second, self.pipeline)):
            for room in rooms:
                room.stop(signal.SIGTERM)
                kept = {name: value for name, value in room.env.items() if not name.startswith(SHARED)}
                mine = {name: value for name, value in env.items() if room is not self.pipeline or "JWT" in name}
                room.env = kept | mine
                room.launch()
            for room in rooms:
                wait_until(room.answers, f"{room.module} answers")

    def call(self, method: str, path: str, token: str, body: object = None, plane: int = 0) -> httpx2.Response:
        base = self.doors.logs if path.startswith(("/logs", "/ingest")) else self.doors.planes[plane]
        return httpx2.request(method, base + path, json=body, headers=bearer(token), timeout=60)

    def keys(self, role: str, plane: int = 0) -> dict[str, str]:
        """The id of the key of this role by family, as this control plane sees it."""
        reply = self.call("GET", "/api/admin/keys", self.doors.admin(), plane=plane)
        assert reply.status_code == 200, reply.text
        return {key["family"]: key["kid"] for key in reversed(reply.json()["keys"]) if key["role"] == role}

    def rotate(self) -> dict[str, str]:
        """The ids of the keys that come."""
        reply = self.call("POST", "/api/admin/keys/rotate", self.doors.admin(), {})
        assert reply.status_code == 200, reply.text
        return {each["family"]: each["kid"] for each in reply.json()["rotations"]}

    def revoke(self, kid: str) -> None:
        reply = self.call("POST", "/api/admin/keys/revoke", self.doors.admin(), {"kid": kid})
        assert reply.status_code == 200, reply.text

    def wait_signs(self, kids: dict[str, str]) -> None:
        """Until these keys sign, as both control planes see it."""
        for plane in range(len(self.planes)):
            wait_until(lambda at=plane: kids.items() <= self.keys("current", at).items(), f"{kids} sign")  # type: ignore[misc]


@contextmanager
def running_site(folder: Path, dsn: str, redis_url: str) -> Iterator[Site]:
    """All three, with keys whose life is short."""
    ports = [free_port() for _ in range(3)]
    *planes, logs = [f"http://127.0.0.1:{port}" for port in ports]
    shared = {name: secrets.token_hex(32) for name in SHARED}
    control = {
        "NIMBUS_DATABASE_URL": dsn, "NIMBUS_REDIS_URL": redis_url, "NIMBUS_PUBLIC_BASE_URL": planes[0],
        "NIMBUS_GITHUB_APP_ID": APP_ID, "NIMBUS_GITHUB_APP_PRIVATE_KEY": app_key().private_pem,
        "NIMBUS_GITHUB_WEBHOOK_SECRET": secrets.token_hex(32), "NIMBUS_LOG_PUBLIC_URL": logs,
        "NIMBUS_AGENT_TOKEN_RATE_LIMIT": "100000", "NIMBUS_ORG_JOB_RATE_LIMIT": "100000",
        "NIMBUS_JWKS_MAX_AGE": str(MAX_AGE_S), "NIMBUS_KEY_REFRESH_INTERVAL": str(REFRESH_S),
        "NIMBUS_KEY_PUBLISH_LEAD": str(LEAD_S),
    }  # fmt: skip

    def room(name: str, module: str, base: str, own: dict[str, str]) -> Room:
        env = clean_environment(folder, **own)
        return Room(f"nimbus.{module}.main", env, f"{base}/readyz", folder / f"{name}.log")

    rooms = [
        room(
            f"plane{port}",
            "control_plane",
            base,
            {**control, **shared, "NIMBUS_CONTROL_PLANE_BIND": f"127.0.0.1:{port}"},
        )
        for port, base in zip(ports[:2], planes, strict=True)
    ]
    pipeline = room(
        "pipeline", "logging_pipeline", logs,
        {"NIMBUS_JWT_SECRET": shared[SHARED[0]], "NIMBUS_CONTROL_PLANE_URL": planes[0],
         "NIMBUS_LOGGING_BIND": f"127.0.0.1:{ports[2]}"},
    )  # fmt: skip
    doors = Doors((planes[0], planes[1]), logs, (shared[SHARED[0]],), (shared[SHARED[1]],))
    site = Site(rooms, pipeline, doors, shared)
    try:
        for each in site.rooms:
            each.start()
        yield site
    finally:
        for each in site.rooms:
            if each.is_running():
                each.stop(signal.SIGTERM)


def change_secrets(site: Site, clients: list[Client]) -> None:
    """The three steps of docs/keys.md, each a restart of everybody, while the signing keys rotate, too."""
    old, new = site.secrets, {name: secrets.token_hex(32) for name in SHARED}
    coming = site.rotate()
    site.restart_all(old | {f"{name}_NEXT": new[name] for name in SHARED})
    site.wait_signs(coming)
    site.doors.admin_secrets = (old[SHARED[0]], new[SHARED[0]])
    site.doors.agent_secrets = (old[SHARED[1]], new[SHARED[1]])

    coming = site.rotate()
    site.restart_all(new | {f"{name}_PREVIOUS": old[name] for name in SHARED})
    site.wait_signs(coming)
    site.doors.admin_secrets, site.doors.agent_secrets = (new[SHARED[0]],), (new[SHARED[1]],)
    wait_until(each_has_gone_round(clients), "nothing that the old secrets signed is on its way")

    coming = site.rotate()
    site.restart_all(new)
    site.wait_signs(coming)
    site.old.append(old)
    site.secrets = new


def test_every_key_rotates_under_load_and_nobody_notices_but_those_who_should(
    tmp_path: Path, postgres_server: PostgresServer, shared_redis: RedisServer
) -> None:
    with open_schema(postgres_server) as dsn, running_site(tmp_path, dsn, shared_redis.url) as site:
        doors = site.doors
        agents = [HostAgent(doors) for _ in range(2)]
        clients: list[Client] = [*agents, Admin(doors), Admin(doors), Stranger(doors, known=agents[0])]
        with running_clients(doors, clients):
            wait_until(lambda: all(agent.outputs for agent in agents), "both agents have run something")
            first = site.keys("current")
            for _ in range(CHANGES):
                change_secrets(site, clients)
            wait_until(each_has_gone_round(clients), "everybody has gone round under the last keys")
        show("\n".join(f"{count:6} {what}" for what, count in sorted(doors.told.items())))
        assert doors.refused == []
        assert doors.let_in == []
        for what in ("enrol", "lease", "renew", "finish", "send output", "submit", "status", "read output"):
            assert doors.told[f"{what}: 200"] + doors.told[f"{what}: 201"] + doors.told[f"{what}: 204"] > 10, what
        assert first.items().isdisjoint(site.keys("current").items())
        check_what_is_over(site, agents[0], postgres_server, dsn.partition("?")[0].rpartition("/")[2])


# --- what must not pass any more ---------------------------------------------------------------------------------


def check_what_is_over(site: Site, agent: HostAgent, server: PostgresServer, database: str) -> None:
    """Secrets that were changed, keys whose time is over, keys that were revoked."""
    for old in site.old:
        for with_kid in (True, False):
            for plane in range(2):
                admin = sign(old[SHARED[0]], Audience.ADMIN, with_kid=with_kid)
                assert site.call("GET", "/api/status", admin, plane=plane).status_code == 401
                enrolment = sign(old[SHARED[1]], Audience.AGENT_ENROLMENT, with_kid=with_kid)
                assert site.call("POST", "/api/agents/enrol", enrolment, {}, plane).status_code == 401
            reader = sign(old[SHARED[0]], Audience.LOGS_READ, with_kid=with_kid)
            assert site.call("GET", "/logs/machines/1", reader).status_code == 401

    first_token, first_output = agent.tokens[0], agent.outputs[0]
    assert passes(site, first_token, first_output) == [True, True, True]
    # as if the longest life of a token had gone by
    server.sql("UPDATE signing_keys SET accepted_until = clock_timestamp() WHERE accepted_until IS NOT NULL", database)
    wait_until(lambda: passes(site, first_token, first_output) == [False] * 3, "tokens of dropped keys are refused")

    with httpx2.Client(timeout=60, trust_env=False) as http:
        agent.enrol(http, site.doors.enrolment(agent.agent_id))
        leaked_token, leaked_output = agent.tokens[-1], lease_something(site, agent, http)
        assert passes(site, leaked_token, leaked_output) == [True, True, True]
        current = site.keys("current")
        for family in ("agent", "machine"):
            site.revoke(current[family])
        # a new key signs at once, and nobody who shows it is refused although verifiers have never seen it
        refused = len(site.doors.refused)
        agent.enrol(http, site.doors.enrolment(agent.agent_id))
        agent.tokens = agent.tokens[-1:]
        fresh_output = lease_something(site, agent, http)
        assert passes(site, agent.tokens[-1], fresh_output) == [True, True, True]
        assert len(site.doors.refused) == refused
        wait_until(
            lambda: passes(site, leaked_token, leaked_output) == [False] * 3, "tokens of revoked keys are refused"
        )


def lease_something(site: Site, agent: HostAgent, http: httpx2.Client) -> tuple[str, int, int]:
    """The output token of a machine that is leased now."""
    before = len(agent.outputs)
    site.doors.ask(http, "submit", "POST", "/api/jobs", site.doors.admin(), json={"argv": ["true"]})

    def look() -> bool:
        agent.lease_once(http)
        return len(agent.outputs) > before

    wait_until(look, "a machine for it")
    return agent.outputs[-1]


def passes(site: Site, token: str, output: tuple[str, int, int]) -> list[bool]:
    """Whether each control plane lets the agent's token in, and the pipeline the machine's."""
    room = {"cpus": 1, "mem_mib": 1, "slots": 0}
    asked = {"wait_s": 0, "free": room, "labels": []}
    replies = [site.call("POST", "/api/agents/lease", token, asked, plane) for plane in range(2)]
    replies.append(site.call("POST", "/ingest", output[0], {"rows": []}))
    assert {reply.status_code for reply in replies} <= {200, 204, 400, 401}, [reply.text for reply in replies]
    return [reply.status_code != 401 for reply in replies]
