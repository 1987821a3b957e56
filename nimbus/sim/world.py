"""All that one running sim holds: accounts, deliveries, memory, App and counts. Made once, passed to routes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nimbus.sim.accounts import Account, Accounts
from nimbus.sim.app_auth import AppAuth
from nimbus.sim.bell import Bell
from nimbus.sim.calls import Tally
from nimbus.sim.deliveries import WINDOW_S as DELIVERY_WINDOW_S
from nimbus.sim.deliveries import Deliveries, WebhookTarget
from nimbus.sim.faults import FaultPlan, Faults
from nimbus.sim.faults_runners import BadRunners
from nimbus.sim.forge import Forge, ForgePolicy, Ids
from nimbus.sim.jobs import Job
from nimbus.sim.limits import RateWindow
from nimbus.sim.memory import Memory
from nimbus.sim.payloads import render_installation_event, render_workflow_job_event
from nimbus.sim.registrations import Registrations

APP_RATE_LIMIT = 5000  # GitHub names no limit for an App's own requests; this one is an installation's smallest


@dataclass(frozen=True)
class WorldPlan:
    """What distinguishes one sim from another."""

    owner: str  # the first organisation, which is meant where none is named
    repo: str  # where a workflow runs that names no repository
    app_id: str
    app_public_key_pem: str
    installation_id: int  # of the first organisation; the next one has the next
    public_url: str  # as a guest reaches the runner protocol
    webhook: WebhookTarget | None
    control_token: str | None = field(repr=False, default=None)
    rate_limit: int = 5000  # REST requests an hour and installation
    policy: ForgePolicy = field(default_factory=ForgePolicy)
    more_owners: tuple[str, ...] = ()
    state_dir: Path | None = None  # where the world is kept; without one it ends with the process
    faults: FaultPlan = field(default_factory=FaultPlan)  # at the start; the control API sets others
    delivery_window_s: float = DELIVERY_WINDOW_S


class World:
    """The sim's state, wired together."""

    def __init__(self, plan: WorldPlan, now_s: Callable[[], float] = time.time) -> None:
        self.plan = plan
        self.bell = Bell()
        self._now_s = now_s
        self._ids = Ids(int(now_s() * 1000))
        self.auth = AppAuth(plan.app_id, plan.app_public_key_pem, now_s)
        self.app_rate = RateWindow(max(APP_RATE_LIMIT, plan.rate_limit), now_s)
        self.tally = Tally()
        self.faults = Faults(plan.faults)
        self.bad_runners = BadRunners(self.faults)
        self.deliveries = Deliveries(plan.webhook, self.faults, plan.delivery_window_s)
        self.registrations = Registrations(now_s)
        self.accounts = Accounts((plan.owner, *plan.more_owners), plan.installation_id, self._open_account)
        self.memory = Memory(plan.state_dir, self.accounts, self.deliveries, self.registrations)
        self.deliveries.changed = self.memory.note
        self.accounts.tell = self._tell_installation

    @property
    def forge(self) -> Forge:
        """The first organisation's."""
        return self.accounts.first.forge

    def sweep(self) -> None:
        """Apply every limit that has passed, everywhere."""
        for account in self.accounts:
            account.forge.sweep()
        self.bad_runners.sweep()

    def _open_account(self, owner: str, installation_id: int) -> Account:
        forge = Forge(owner, self.plan.policy, self._now_s, self._ids)
        forge.repo(self.plan.repo)
        account = Account(installation_id, forge, RateWindow(self.plan.rate_limit, self._now_s))
        forge.changed, forge.tell = self._change, partial(self._tell, account)
        self.bad_runners.attach(forge, self.plan.repo)
        return account

    def _change(self) -> None:
        self.bell.ring()
        self.memory.note()

    def _tell(self, account: Account, job: Job, action: str) -> None:
        if account.listens:
            payload = render_workflow_job_event(job, action, account.installation_id)
            self.deliveries.add("workflow_job", action, payload)

    def _tell_installation(self, account: Account, action: str) -> None:
        payload = render_installation_event(account, action, self.plan.app_id)
        self.deliveries.add("installation", action, payload)
        self.memory.note()
