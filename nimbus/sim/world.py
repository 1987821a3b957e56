"""All that one running sim holds: forge, deliveries, memory, App and limits. Made once, passed to routes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nimbus.model.errors import RateLimited
from nimbus.sim.app_auth import AppAuth
from nimbus.sim.bell import Bell
from nimbus.sim.deliveries import WINDOW_S as DELIVERY_WINDOW_S
from nimbus.sim.deliveries import Deliveries, WebhookTarget
from nimbus.sim.faults import FaultPlan, Faults
from nimbus.sim.forge import Forge, ForgePolicy
from nimbus.sim.jobs import Job
from nimbus.sim.memory import Memory
from nimbus.sim.payloads import render_workflow_job_event

WINDOW_S = 3600.0


@dataclass(frozen=True)
class WorldPlan:
    """What distinguishes one sim from another."""

    owner: str
    repo: str  # where a workflow runs that names no repository
    app_id: str
    app_public_key_pem: str
    installation_id: int
    public_url: str  # as a guest reaches the runner protocol
    webhook: WebhookTarget | None
    control_token: str | None = field(repr=False, default=None)
    rate_limit: int = 5000  # REST requests an hour and installation
    policy: ForgePolicy = field(default_factory=ForgePolicy)
    state_dir: Path | None = None  # where the world is kept; without one it ends with the process
    faults: FaultPlan = field(default_factory=FaultPlan)  # at the start; the control API sets others
    delivery_window_s: float = DELIVERY_WINDOW_S


class RateWindow:
    """GitHub's primary limit: so many requests an hour, then none until the hour is over."""

    def __init__(self, limit: int, now_s: Callable[[], float]) -> None:
        self.limit = limit
        self._now_s = now_s
        self._used = 0
        self._reset_s = now_s() + WINDOW_S

    def count(self) -> None:
        now = self._now_s()
        if now >= self._reset_s:
            self._used, self._reset_s = 0, now + WINDOW_S
        if self._used >= self.limit:
            raise RateLimited("API rate limit exceeded for installation.", self._reset_s - now)
        self._used += 1

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(max(0, self.limit - self._used)),
            "x-ratelimit-used": str(self._used),
            "x-ratelimit-reset": str(int(self._reset_s)),
            "x-ratelimit-resource": "core",
        }


class World:
    """The sim's state, wired together."""

    def __init__(self, plan: WorldPlan, now_s: Callable[[], float] = time.time) -> None:
        self.plan = plan
        self.bell = Bell()
        self.auth = AppAuth(plan.app_id, plan.app_public_key_pem, plan.installation_id, now_s)
        self.faults = Faults(plan.faults)
        self.deliveries = Deliveries(plan.webhook, self.faults, plan.delivery_window_s)
        self.rate = RateWindow(plan.rate_limit, now_s)
        self.forge = Forge(plan.owner, plan.policy, now_s)
        self.memory = Memory(plan.state_dir, self.forge, self.deliveries, self.auth)
        self.deliveries.changed = self.memory.note
        self.forge.changed = self._change
        self.forge.tell = self._tell

    def _change(self) -> None:
        self.bell.ring()
        self.memory.note()

    def _tell(self, job: Job, action: str) -> None:
        payload = render_workflow_job_event(job, action, self.plan.installation_id)
        self.deliveries.add("workflow_job", action, payload, self.plan.installation_id)
