"""A storm's way into a control plane that may be dead at any moment: None where nobody answers. Called by storm.py."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx2

from nimbus.wire.tokens import Audience, hmac_key, render_token

Json = dict[str, Any]
ANSWER_S = 10.0  # of a loaded machine; a dead process refuses at once


@dataclass(frozen=True)
class Office:
    """The doors of one control plane and its pipeline."""

    url: str
    logs_url: str
    secret: str

    def submit(self, job: Json) -> Json | None:
        """The job's and the machine request's numbers. The key in it makes a second try the same job."""
        return self._ask("POST", f"{self.url}/api/jobs", Audience.ADMIN, job)

    def cancel(self, job_id: int) -> Json | None:
        return self._ask("POST", f"{self.url}/api/jobs/{job_id}/cancel", Audience.ADMIN)

    def jobs(self) -> list[Json] | None:
        """All of them: a storm has fewer than the page's most."""
        found = self._ask("GET", f"{self.url}/api/jobs/recent?limit=200", Audience.ADMIN)
        return None if found is None else list(found["jobs"])

    def output(self, machine_id: int, fence: int) -> list[str] | None:
        """What one run printed, as the pipeline has it."""
        path = f"{self.logs_url}/logs/machines/{machine_id}?fence={fence}&limit=1000"
        found = self._ask("GET", path, Audience.LOGS_READ)
        return None if found is None else [row["message"] for row in found["rows"] if row["stream"] == "stdout"]

    def _ask(self, method: str, url: str, audience: Audience, body: Json | None = None) -> Json | None:
        claims = {"role": "admin" if audience is Audience.ADMIN else "read"}
        token = render_token(
            hmac_key(self.secret), subject="storm", audience=audience, now_s=time.time(), ttl_s=600, claims=claims
        )
        headers = {"Authorization": f"Bearer {token}"}
        try:
            answer = httpx2.request(method, url, json=body, headers=headers, timeout=ANSWER_S)
        except httpx2.TransportError:
            return None
        if answer.status_code >= 500 or answer.status_code == 404:
            return None
        assert answer.status_code < 300, answer.text
        return dict(answer.json())
