"""Whoever shows tokens to two control planes and a pipeline, all the time: agents, admins, readers, and strangers.

Each picks any of the tokens that it was ever given and that must be good. What is away is asked again, at the other
replica; what is refused is written down. Used by test_key_rotation.py.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
import traceback
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import jwt

from nimbus.wire.tokens import Audience, SigningKey, hmac_key, new_ed25519_key, render_token
from tests.acceptance.stack import LIMIT_S

PACE_S = 0.05  # between two rounds of one client: the machine is shared with the services that it asks
TTL_S = 600.0
JSON = dict[str, Any]


@dataclass
class Doors:
    """The services' addresses, the secrets that may sign now, and what came of all requests."""

    planes: tuple[str, ...]
    logs: str
    admin_secrets: tuple[str, ...]
    agent_secrets: tuple[str, ...]
    told: Counter[str] = field(default_factory=Counter)  # by what was asked and how it was answered
    refused: list[str] = field(default_factory=list)
    let_in: list[str] = field(default_factory=list)  # strangers
    over: threading.Event = field(default_factory=threading.Event)

    def ask(self, http: httpx2.Client, what: str, method: str, path: str, token: str, **more: Any) -> JSON:
        """The answer of whichever replica is there; what is away is asked again until one is."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            base = self.logs if path.startswith(("/logs", "/ingest")) else random.choice(self.planes)
            try:
                reply = http.request(method, base + path, headers=bearer(token), **more)
            except httpx2.TransportError as error:
                self.told[f"{what}: {type(error).__name__}"] += 1
            else:
                self.told[f"{what}: {reply.status_code}"] += 1
                if reply.status_code < 400:
                    return dict(reply.json()) if reply.content else {}
                if reply.status_code in {401, 403}:
                    self.refused.append(f"{what} at {base}: {reply.status_code} {reply.text[:200]}")
                    return {}
                if reply.status_code < 500:
                    return {}
            time.sleep(PACE_S)
        raise AssertionError(f"nobody answered {what}")

    def admin(self, audience: Audience = Audience.ADMIN) -> str:
        """A fresh token, with its key's id or, as other programs make them, without."""
        secret = random.choice(self.admin_secrets)
        return sign(secret, audience, with_kid=random.random() < 0.5)

    def enrolment(self, agent_id: str) -> str:
        return sign(random.choice(self.agent_secrets), Audience.AGENT_ENROLMENT, agent_id)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sign(secret: str, audience: Audience, subject: str = "acceptance", *, with_kid: bool = True) -> str:
    """A token of a shared secret, valid for ten minutes."""
    now_s = time.time()
    if with_kid:
        return render_token(
            hmac_key(secret), subject=subject, audience=audience, now_s=now_s, ttl_s=TTL_S, claims={"role": "admin"}
        )
    claims = {"iss": "nimbus", "sub": subject, "aud": str(audience), "role": "admin", "exp": int(now_s + TTL_S)}
    return jwt.encode(claims, secret, algorithm="HS256")


@dataclass
class Client(ABC):
    """One thread that goes round until it is told to stop."""

    doors: Doors
    rounds: int = 0
    failed: str = ""

    @abstractmethod
    def go_round(self, http: httpx2.Client) -> None:
        """What it does, over and over."""

    def run(self) -> None:
        try:
            with httpx2.Client(timeout=60, trust_env=False) as http:
                while not self.doors.over.is_set():
                    self.go_round(http)
                    self.rounds += 1
                    time.sleep(PACE_S)
        except Exception:  # noqa: BLE001 - a thread's end is seen by nobody: the test looks here
            self.failed = traceback.format_exc()


@dataclass
class HostAgent(Client):
    """Enrols, renews its token, leases, renews, sends output, finishes."""

    agent_id: str = field(default_factory=lambda: f"host-{secrets.token_hex(4)}")
    tokens: list[str] = field(default_factory=list)
    outputs: list[tuple[str, int, int]] = field(default_factory=list)  # token, machine, fence of what it ran
    sent: Counter[int] = field(default_factory=Counter)

    def go_round(self, http: httpx2.Client) -> None:
        if not self.tokens or random.random() < 0.3:
            known = random.choice(self.tokens) if self.tokens and random.random() < 0.5 else None
            self.enrol(http, known or self.doors.enrolment(self.agent_id))
        self.lease_once(http)
        if self.outputs:  # output that lay in the spool for long, with the token of its time
            self._send(http, *random.choice(self.outputs))

    def lease_once(self, http: httpx2.Client) -> None:
        """Serve one machine where there is one."""
        room = {"cpus": 8, "mem_mib": 8192, "slots": 8}
        body = {"wait_s": 0, "free": room, "labels": ["nimbus"]}
        grant = self._ask(http, "lease", "/api/agents/lease", body)
        if grant:
            self._serve(http, grant)

    def enrol(self, http: httpx2.Client, token: str) -> None:
        asked = {"version": "0.1.0", "boot_id": self.agent_id, "cpus": 8, "mem_mib": 8192}
        reply = self.doors.ask(http, "enrol", "POST", "/api/agents/enrol", token, json=asked)
        self.tokens += [reply["token"]] if reply else []

    def _ask(self, http: httpx2.Client, what: str, path: str, body: JSON) -> JSON:
        return self.doors.ask(http, what, "POST", path, random.choice(self.tokens), json=body)

    def _serve(self, http: httpx2.Client, grant: JSON) -> None:
        machine, key = grant["machine_id"], {"lease_id": grant["lease_id"], "fence": grant["fence"]}
        self._ask(http, "renew", f"/api/machines/{machine}/renew", key | {"state": "running"})
        self.outputs.append((grant["log_token"], machine, grant["fence"]))
        self._send(http, *self.outputs[-1])
        self._ask(http, "finish", f"/api/machines/{machine}/finish", key | {"ending": "done", "exit_code": 0})

    def _send(self, http: httpx2.Client, token: str, machine: int, _fence: int) -> None:
        self.sent[machine] += 1
        seq = self.sent[machine]
        row = {"seq": seq, "ts_ms": int(time.time() * 1000), "stream": "stdout", "message": f"line {seq}"}
        self.doors.ask(http, "send output", "POST", "/ingest", token, json={"rows": [row]})


@dataclass
class Admin(Client):
    """Submits jobs and looks at them, and reads their output."""

    jobs: list[int] = field(default_factory=list)

    def go_round(self, http: httpx2.Client) -> None:
        ask = self.doors.ask
        job = {"argv": ["true"], "idempotency_key": str(uuid.uuid4())}
        submitted = ask(http, "submit", "POST", "/api/jobs", self.doors.admin(), json=job)
        self.jobs += [submitted["job_id"]] if submitted else []
        ask(http, "status", "GET", "/api/status", self.doors.admin())
        ask(http, "keys", "GET", "/api/admin/keys", self.doors.admin())
        if self.jobs:  # the pipeline asks a control plane for it, with a token of its own
            ask(
                http,
                "read output",
                "GET",
                f"/logs/jobs/{random.choice(self.jobs)}",
                self.doors.admin(Audience.LOGS_READ),
            )


@dataclass
class Stranger(Client):
    """Shows what must never be let in."""

    known: HostAgent | None = None

    def go_round(self, http: httpx2.Client) -> None:
        self._show(http, "GET", "/api/admin/keys", sign(secrets.token_hex(32), Audience.ADMIN))
        self._show(http, "GET", "/api/status", sign(secrets.token_hex(32), Audience.ADMIN, with_kid=False))
        self._show(http, "GET", "/logs/machines/1", sign(random.choice(self.doors.admin_secrets), Audience.ADMIN))
        self._show(http, "POST", "/api/agents/enrol", sign(secrets.token_hex(32), Audience.AGENT_ENROLMENT))
        self._show(http, "POST", "/api/agents/lease", forge(new_ed25519_key(), Audience.AGENT))
        self._show(http, "POST", "/ingest", forge(new_ed25519_key(), Audience.LOGS))
        if self.known is not None and self.known.outputs and self.known.tokens:
            self._show(http, "POST", "/api/agents/lease", random.choice(self.known.outputs)[0])
            self._show(http, "POST", "/ingest", random.choice(self.known.tokens))
            self._show(http, "GET", "/api/status", random.choice(self.known.tokens))

    def _show(self, http: httpx2.Client, method: str, path: str, token: str) -> None:
        base = self.doors.logs if path.startswith(("/logs", "/ingest")) else random.choice(self.doors.planes)
        try:
            status = http.request(method, base + path, headers=bearer(token)).status_code
        except httpx2.TransportError:
            return
        self.doors.told[f"stranger: {status}"] += 1
        if status not in {401, 403, 503}:  # 503: the key could not be looked up just then, so nobody was let in
            self.doors.let_in.append(f"{method} {path}: {status}")


def forge(key: SigningKey, audience: Audience) -> str:
    """A token of a key of one's own."""
    claims = {"org_id": 1, "machine_id": 1, "fence": 1, "agent_id": "a"}
    return render_token(key, subject="host-1", audience=audience, now_s=time.time(), ttl_s=TTL_S, claims=claims)


@contextmanager
def running_clients(doors: Doors, clients: list[Client]) -> Iterator[None]:
    """They go round for as long as the block runs."""
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        doors.over.set()
        for thread in threads:
            thread.join(LIMIT_S)
    assert [client.failed for client in clients if client.failed] == []


def each_has_gone_round(clients: list[Client], times: int = 2) -> Callable[[], bool]:
    """Whether every one of them has begun and ended a round since now: nothing made before is on its way any more."""
    since = [client.rounds for client in clients]

    def look() -> bool:
        assert [client.failed for client in clients if client.failed] == []
        return all(client.rounds >= before + times for client, before in zip(clients, since, strict=True))

    return look
