"""Runner registrations: minted as late as possible, recorded before GitHub knows of them, always undone.

Step 10 of the straight line. The intent (a name made of machine and fence) is committed before GitHub is
asked, so a crash in between leaves something to look for. A registration ends when its machine does or when
no queued job needs it; GitHub's refusal to delete a busy runner is respected: such a machine is left alone.
Agents ask for a runner here and never talk to GitHub. app.py registers the route and runs the sweeper.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import structlog
import trio
from quart import Blueprint, Response

from nimbus.control_plane.access import read_agent
from nimbus.control_plane.demand import DemandRules, LabelSet, balance, is_needed, lock_org
from nimbus.control_plane.github_client import Deletion, GithubClient, JitRunner, RunnerScope
from nimbus.control_plane.leases import check_lease
from nimbus.control_plane.machines import cancel_machine
from nimbus.control_plane.services import MACHINES, RUNNERS, LeaseTerms, Services
from nimbus.model.errors import Conflict, Fenced, Gone, NimbusError, Refused, Unavailable
from nimbus.model.lease import LeaseKey
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.runtime.serving import json_response, read_body
from nimbus.wire import leaseapi
from nimbus.wire.leaseapi import MachineKind, RunnerReply

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "runners.sql")

RUNNER_ARGV = ("/usr/local/bin/nimbus-runner",)
CONFIG_VARIABLE = "ACTIONS_RUNNER_INPUT_JITCONFIG"  # keeps the config off the command line
DEFAULT_GROUP_ID = 1
SWEEP_S = 5.0
BUSY_PAUSE_S = 60.0  # before a runner that GitHub would not delete is asked about again
UNDO_S = 25.0  # for one deregistration after a lost lease; the sweeper does what did not fit


@dataclass(frozen=True)
class _Intent:
    """A runner that may be registered now."""

    name: str
    scope: RunnerScope
    labels: tuple[str, ...]
    earlier: str | None  # the name under an earlier fence that may still be registered


@dataclass
class Patience:
    """Machines whose runner GitHub did not let go, and when to ask again."""

    until_s: dict[int, float] = field(default_factory=dict)

    def waiting(self) -> list[int]:
        now = time.monotonic()
        self.until_s = {machine: until for machine, until in self.until_s.items() if until > now}
        return list(self.until_s)

    def postpone(self, machine_id: int) -> None:
        self.until_s[machine_id] = time.monotonic() + BUSY_PAUSE_S


def runner_name(deployment_id: str, machine_id: int, fence: int) -> str:
    """The one name of a machine's runner under one lease, in one deployment of Nimbus."""
    return f"nimbus-{deployment_id}-{machine_id}-{fence}"


def build_runners_api(services: Services, github: GithubClient, rules: DemandRules) -> Blueprint:
    """`POST /api/machines/<id>/runner`."""
    blueprint = Blueprint("runners", __name__)

    @blueprint.post("/api/machines/<int:machine_id>/runner")
    async def mint(machine_id: int) -> Response:
        agent_id = read_agent(services)
        key = leaseapi.parse_runner_request(await read_body(), machine_id)
        reply = await mint_runner(services, github, rules, agent_id, key)
        return json_response(leaseapi.render_runner_reply(reply))

    return blueprint


async def mint_runner(
    services: Services, github: GithubClient, rules: DemandRules, agent_id: str, key: LeaseKey
) -> RunnerReply:
    """A fresh registration for the holder of this lease; Gone where no queued job needs it any more."""
    try:
        intent = await services.database.run(_intend, services.lease_terms, agent_id, key, rules)
    except Fenced:
        services.metrics.leases_fenced.inc()
        raise
    if intent is None:
        raise Gone(f"no queued job needs machine {key.machine_id} any more: stop it")
    if intent.earlier is not None:
        await _remove_by_name(github, intent.scope, intent.earlier)
    runner = await _register(github, intent)
    if not await services.database.run(_record, services.lease_terms, agent_id, key, runner.runner_id):
        services.metrics.leases_fenced.inc()
        with trio.move_on_after(UNDO_S):
            await github.delete_runner(intent.scope, runner.runner_id)
        raise Fenced(f"the lease of machine {key.machine_id} ended while its runner was registered: stop it")
    log.info("runner.registered", machine=key.machine_id, fence=key.fence, runner=intent.name)
    return RunnerReply(intent.name, RUNNER_ARGV, {CONFIG_VARIABLE: runner.config})


async def _intend(
    transaction: Transaction, terms: LeaseTerms, agent_id: str, key: LeaseKey, rules: DemandRules
) -> _Intent | None:
    org_id = await transaction.fetchval(_SQL["org_of_machine"], key.machine_id)
    await lock_org(transaction, org_id)  # first, as everywhere: it orders all that counts this org's demand
    held = await check_lease(transaction, terms, agent_id, key)
    if held["kind"] != MachineKind.RUNNER:
        raise Refused(f"machine {key.machine_id} runs a command: it has no runner")
    row = await transaction.fetchrow(_SQL["scope_of_machine"], key.machine_id)
    assert row is not None  # noqa: S101 -- check_lease has it locked
    label_set = LabelSet(row["org_id"], row["repo_id"], tuple(row["labels"]))
    waiting = await transaction.fetchval(
        _SQL["count_waiting"], row["org_id"], row["repo_id"], row["labels"], key.machine_id
    )
    if held["cancel_requested"] or not await is_needed(transaction, label_set, waiting):
        await cancel_machine(transaction, key.machine_id, "no queued job needs it any more")
        return None
    name = runner_name(row["deployment_id"], key.machine_id, key.fence)
    await transaction.execute(_SQL["intend_runner"], key.machine_id, name)
    earlier = row["runner_name"] if row["runner_id"] is not None and row["runner_name"] != name else None
    return _Intent(name, _scope(row, rules.default_installation_id), tuple(row["labels"]), earlier)


def _scope(row: Row, default_installation_id: int | None) -> RunnerScope:
    installation_id = row["installation_id"] or default_installation_id
    if installation_id is None:
        raise Unavailable(
            f"no installation of the GitHub App is known for {row['login']}: set NIMBUS_GITHUB_APP_INSTALLATION_ID",
            retry_after_s=60.0,
        )
    return RunnerScope(installation_id, row["login"], row["repo"])


async def _record(transaction: Transaction, terms: LeaseTerms, agent_id: str, key: LeaseKey, runner_id: int) -> bool:
    """Whether the lease was still held."""
    try:
        await check_lease(transaction, terms, agent_id, key)
    except Fenced:
        return False
    await transaction.execute(_SQL["record_runner"], key.machine_id, runner_id)
    return True


async def _register(github: GithubClient, intent: _Intent) -> JitRunner:
    """Mint. A taken name is our own, from a reply that was lost: the guest never started, so it is replaced."""
    try:
        try:
            return await github.mint_runner(intent.scope, intent.name, intent.labels, DEFAULT_GROUP_ID)
        except Conflict:
            await _remove_by_name(github, intent.scope, intent.name)
            return await github.mint_runner(intent.scope, intent.name, intent.labels, DEFAULT_GROUP_ID)
    except Refused as error:
        # refused is our App or our setting, not the agent that asked: it may only come again later
        raise Unavailable(f"the runner cannot be registered: {error}", retry_after_s=60.0) from error


async def _remove_by_name(github: GithubClient, scope: RunnerScope, name: str) -> Deletion:
    runner_id = await github.find_runner(scope, name)
    return Deletion.ABSENT if runner_id is None else await github.delete_runner(scope, runner_id)


# --- undoing ------------------------------------------------------------------------------------------------------


async def deregister_ended(
    services: Services, github: GithubClient, rules: DemandRules, patience: Patience | None = None
) -> int:
    """Undo the registrations of machines that have ended or wait for another host; how many are gone."""
    patience = patience or Patience()
    gone = 0
    for row in await services.database.run(_superfluous, patience.waiting()):
        # GitHub removed the runner with its job: one write less against the limit
        deletion = Deletion.ABSENT if row["served"] else await _try_delete(github, row, rules)
        if deletion in {Deletion.BUSY, None}:
            patience.postpone(row["machine_id"])
            continue
        await services.database.run(_forget, row["machine_id"], row["runner_name"])
        log.info("runner.deregistered", machine=row["machine_id"], runner=row["runner_name"], how=str(deletion))
        gone += 1
    return gone


async def _try_delete(github: GithubClient, row: Row, rules: DemandRules) -> Deletion | None:
    """Deregister one runner; None where GitHub was away or refused: the next org's must not wait for that."""
    try:
        scope = _scope(row, rules.default_installation_id)
        if row["runner_id"]:
            deletion = await github.delete_runner(scope, row["runner_id"])
        else:  # its id was never learned
            deletion = await _remove_by_name(github, scope, row["runner_name"])
    except NimbusError as error:
        log.warning("runner.not_deregistered", machine=row["machine_id"], reason=str(error))
        return None
    if deletion is Deletion.BUSY:
        log.warning("runner.busy", machine=row["machine_id"], runner=row["runner_name"])
    return deletion


async def _superfluous(transaction: Transaction, waiting: list[int]) -> list[Row]:
    return list(await transaction.fetch(_SQL["superfluous"], waiting))


async def _forget(transaction: Transaction, machine_id: int, name: str) -> None:
    await transaction.execute(_SQL["forget_runner"], machine_id, name)


async def release_idle(
    services: Services, github: GithubClient, rules: DemandRules, patience: Patience | None = None
) -> int:
    """Deregister, then cancel, the idle runners that no queued job needs; how many were let go.

    In this order: GitHub alone knows whether a runner took a job a moment ago, and refuses then.
    """
    patience = patience or Patience()
    let_go = 0
    for row in await services.database.run(_idle_surplus, patience.waiting()):
        deletion = await _try_delete(github, row, rules)
        if deletion is not Deletion.DELETED:
            # busy, or removed by GitHub with the job that it took: the machine ends by itself
            patience.postpone(row["machine_id"])
            continue
        queued = await services.database.run(_let_go, row, rules)
        log.info("runner.idle", machine=row["machine_id"], runner=row["runner_name"])
        let_go += 1
        if queued:
            await services.bell.ring(MACHINES)
    return let_go


async def _idle_surplus(transaction: Transaction, waiting: list[int]) -> list[Row]:
    return list(await transaction.fetch(_SQL["idle_surplus"], waiting))


async def _let_go(transaction: Transaction, row: Row, rules: DemandRules) -> int:
    label_set = LabelSet(row["org_id"], row["repo_id"], tuple(row["labels"]))
    await lock_org(transaction, row["org_id"])
    if await transaction.fetchval(_SQL["lock_idle"], row["machine_id"], row["runner_name"]) is not None:
        await cancel_machine(transaction, row["machine_id"], "its runner found no queued job")
    await transaction.execute(_SQL["clear_runner"], row["machine_id"], row["runner_name"])
    # a job may have been queued while GitHub was asked, and counted on this machine
    queued, _ = await balance(transaction, label_set, rules, row["installation_id"], None)
    return queued


async def sweep_runners(services: Services, github: GithubClient, rules: DemandRules) -> None:
    """Undo what is superfluous until cancelled: at each ring, and now and then without one."""
    patience = Patience()
    with services.bell.listen(RUNNERS) as ear:
        while True:
            try:
                await deregister_ended(services, github, rules, patience)
                await release_idle(services, github, rules, patience)
            except Unavailable as error:  # the database
                log.warning("runner.sweep_postponed", reason=str(error))
            with trio.move_on_after(SWEEP_S):
                await ear.wait()
