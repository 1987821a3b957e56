"""Runners minted for machines, as late as possible and never without a record. Step 10 of the straight line.

The intent (a name made of deployment, machine and fence) is committed before GitHub is asked, so that a crash in
between leaves something to look for. One write per job: GitHub removes the runner together with its job. What GitHub
refuses is kept (problems.py) and not asked for again before its time. Never undoes what a machine's end leaves behind
(registrations.py does). Agents ask for a runner here and never talk to GitHub. forge.py registers the route.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio
from quart import Blueprint, Response

from nimbus.control_plane.access import read_agent
from nimbus.control_plane.demand.demand import LabelSet, is_needed, lock_org
from nimbus.control_plane.demand.installations import serving_installation
from nimbus.control_plane.github.client import Deletion
from nimbus.control_plane.openapi.agents import MINT_RUNNER
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.orgs.problems import (
    Blocked,
    Place,
    Task,
    check_blocked,
    clear_problem,
    keep_problem,
    note_problem,
)
from nimbus.control_plane.queue.leases import check_lease
from nimbus.control_plane.queue.machines import cancel_machine
from nimbus.control_plane.runners.registrations import (
    DEFAULT_GROUP_ID,
    Registrar,
    Registration,
    look_and_delete,
    scope_of,
)
from nimbus.model.errors import Conflict, Fenced, Gone, NotFound, Refused, Unavailable
from nimbus.model.forge import ForgeTrouble, Problem, ProblemKind
from nimbus.model.lease import LeaseKey
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.runtime.serving import json_response, read_body
from nimbus.wire import leaseapi
from nimbus.wire.githubrest import JitRunner
from nimbus.wire.leaseapi import MachineKind, RunnerReply

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "runners.sql")

INPUT_PREFIX = "ACTIONS_RUNNER_INPUT_"  # GitHub's runner reads its arguments there: a secret is on no command line
PATIENCE_S = 15.0  # of an agent's request while GitHub says "in a moment": shorter than throwing a booted VM away
UNDO_S = 25.0  # for one deregistration after a lost lease; the sweeper does what did not fit
UNSERVED_RETRY_S = 3600.0  # GitHub's webhook and its list tell sooner that the App is there again
REFUSED_RETRY_S = 60.0  # where only our own side knows what was refused
UNLISTED_S = 5.0  # a runner that was just registered is in the list by then
UNKNOWN_ID = 0  # of a runner that may exist, or that its guest registers by itself


@dataclass(frozen=True)
class _Intent:
    """A runner that may be registered now."""

    name: str
    place: Place
    labels: tuple[str, ...]
    group_id: int
    earlier: str | None  # the name under an earlier fence that may still be registered


@dataclass(frozen=True)
class _Minted:
    """What GitHub gave for the guest."""

    runner_id: int
    env: Mapping[str, str] = field(repr=False)


def runner_name(deployment_id: str, machine_id: int, fence: int) -> str:
    """The one name of a machine's runner under one lease, in one deployment of Nimbus."""
    return f"nimbus-{deployment_id}-{machine_id}-{fence}"


def build_runners_api(registrar: Registrar) -> Blueprint:
    """`POST /api/machines/<id>/runner`."""
    blueprint = Blueprint("runners", __name__)

    @blueprint.post("/api/machines/<int:machine_id>/runner")
    @declare(MINT_RUNNER)
    async def mint(machine_id: int) -> Response:
        agent_id = await read_agent(registrar.services)
        key = leaseapi.parse_runner_request(await read_body(), machine_id)
        reply = await mint_patiently(registrar, agent_id, key)
        return json_response(leaseapi.render_runner_reply(reply))

    return blueprint


async def mint_patiently(registrar: Registrar, agent_id: str, key: LeaseKey) -> RunnerReply:
    """A fresh registration for the holder of this lease; Gone where no queued job needs it any more."""
    until = trio.current_time() + PATIENCE_S
    while True:
        try:
            return await mint_runner(registrar, agent_id, key)
        except Blocked as error:
            if trio.current_time() + error.retry_after_s > until:
                raise
            blocked = error
        with trio.move_on_after(blocked.retry_after_s):
            await registrar.services.stopping.wait()
            raise blocked


async def mint_runner(registrar: Registrar, agent_id: str, key: LeaseKey) -> RunnerReply:
    """The same without patience: Blocked where GitHub refuses, now or a moment ago."""
    services = registrar.services
    try:
        intent = await services.database.run(_intend, registrar, agent_id, key)
    except Fenced:
        services.metrics.leases_fenced.inc()
        raise
    if isinstance(intent, Blocked):
        raise intent
    if intent is None:
        raise Gone(f"no queued job needs machine {key.machine_id} any more: stop it")
    minted = await _ask_github(registrar, intent)
    if isinstance(minted, Problem):
        await keep_problem(services, intent.place, minted)
        raise intent.place.block(minted)
    if not await services.database.run(_record, registrar, agent_id, key, (minted.runner_id, intent.place)):
        services.metrics.leases_fenced.inc()
        await _undo(registrar, intent, minted)
        raise Fenced(f"the lease of machine {key.machine_id} ended while its runner was registered: stop it")
    log.info("runner.registered", machine=key.machine_id, fence=key.fence, runner=intent.name)
    return RunnerReply(intent.name, registrar.rules.argv, minted.env)


async def _intend(
    transaction: Transaction, registrar: Registrar, agent_id: str, key: LeaseKey
) -> _Intent | Blocked | None:
    """None where no queued job needs the machine any more; Blocked, not raised, where that is to be committed."""
    org_id = await transaction.fetchval(_SQL["org_of_machine"], key.machine_id)
    await lock_org(transaction, org_id)  # first, as everywhere: it orders all that counts this org's demand
    held = await check_lease(transaction, registrar.services.lease_terms, agent_id, key)
    if held["kind"] != MachineKind.RUNNER:
        raise Refused(f"machine {key.machine_id} runs a command: it has no runner")
    row = await transaction.fetchrow(_SQL["scope_of_machine"], key.machine_id)
    assert row is not None  # noqa: S101 -- check_lease has it locked
    label_set = LabelSet(row["org_id"], row["repo_id"], tuple(row["labels"]))
    waiting = await transaction.fetchval(
        _SQL["count_waiting"], row["org_id"], row["repo_id"], row["labels"], key.machine_id
    )
    if held["cancel_requested"] or not await is_needed(transaction, label_set, waiting, registrar.demand):
        await cancel_machine(transaction, key.machine_id, "no queued job needs it any more")
        return None
    default = row["installation_id"] or registrar.demand.default_installation_id
    installation_id = await serving_installation(transaction, row["org_id"], default)
    if installation_id is None:
        return await _note_unserved(transaction, row)
    place = Place(installation_id, row["login"], row["repo"])
    await check_blocked(transaction, place)
    name = runner_name(row["deployment_id"], key.machine_id, key.fence)
    await transaction.execute(_SQL["intend_runner"], key.machine_id, name, installation_id)
    earlier = row["runner_name"] if row["runner_id"] is not None and row["runner_name"] != name else None
    group_id = row["runner_group_id"] or registrar.rules.group_id
    return _Intent(name, place, tuple(row["labels"]), group_id, earlier)


async def _note_unserved(transaction: Transaction, row: Row) -> Blocked:
    """Of the account's installations none is left: no machine of theirs is granted before somebody may have acted."""
    if not row["removed"]:
        raise Unavailable(
            f"no installation of the GitHub App is known for {row['login']}: set NIMBUS_GITHUB_APP_INSTALLATION_ID",
            retry_after_s=REFUSED_RETRY_S,
        )
    problem = Problem(ProblemKind.NOT_INSTALLED, "the App was removed", UNSERVED_RETRY_S)
    await note_problem(transaction, row["installation_id"], None, problem, task=Task.REGISTER)
    return Place(row["installation_id"], row["login"], None).block(problem)


async def _ask_github(registrar: Registrar, intent: _Intent) -> _Minted | Problem:
    """What GitHub gives for the guest, or why it does not."""
    try:
        if intent.earlier is not None:
            await look_and_delete(registrar.github, scope_of(intent.place), intent.earlier)
        if registrar.rules.registration is Registration.TOKEN:
            return await _plan_guest(registrar, intent)
        return await _mint(registrar, intent)
    except ForgeTrouble as trouble:
        return trouble.problem
    except NotFound as error:
        return Problem(ProblemKind.NOT_INSTALLED, str(error), REFUSED_RETRY_S)
    except Refused as error:
        # refused is our App or our setting, not the agent that asked: it may only come again later
        return Problem(ProblemKind.REFUSED, str(error), REFUSED_RETRY_S)


async def _plan_guest(registrar: Registrar, intent: _Intent) -> _Minted:
    """The guest registers by itself: what GitHub's config.sh is to be told, for the scope's default group."""
    if intent.group_id != DEFAULT_GROUP_ID:
        said = f"group {intent.group_id}: with a token, runners register in the default group (1) only"
        raise ForgeTrouble(Problem(ProblemKind.GROUP_MISSING, said, REFUSED_RETRY_S))
    scope = scope_of(intent.place)
    token = await registrar.github.registration_token(scope)
    where = scope.owner if scope.repo is None else f"{scope.owner}/{scope.repo}"
    told = {
        "TOKEN": token.token,
        "URL": f"{registrar.rules.web_url.rstrip('/')}/{where}",
        "NAME": intent.name,
        "LABELS": ",".join(intent.labels),
    }
    return _Minted(UNKNOWN_ID, {f"{INPUT_PREFIX}{name}": value for name, value in told.items()})


async def _mint(registrar: Registrar, intent: _Intent) -> _Minted:
    """A taken name is our own, from a reply that was lost: the guest never started, so it is replaced."""
    github, scope = registrar.github, scope_of(intent.place)
    mint = partial(github.mint_runner, scope, intent.name, intent.labels, intent.group_id)
    runner: JitRunner | None = None
    with suppress(Conflict):
        runner = await mint()
    if runner is None and await look_and_delete(github, scope, intent.name) is Deletion.DELETED:
        with suppress(Conflict):
            runner = await mint()
    if runner is None:
        # the list lags behind; a third mint would be one more write for nothing
        raise Blocked(f"GitHub has a runner named {intent.name} and does not list it yet", UNLISTED_S)
    return _Minted(runner.runner_id, {f"{INPUT_PREFIX}JITCONFIG": runner.config})


async def _record(
    transaction: Transaction, registrar: Registrar, agent_id: str, key: LeaseKey, minted: tuple[int, Place]
) -> bool:
    """Whether the lease was still held."""
    runner_id, place = minted
    await clear_problem(transaction, place.installation_id, place.repo, task=Task.REGISTER)
    try:
        await check_lease(transaction, registrar.services.lease_terms, agent_id, key)
    except Fenced:
        return False
    await transaction.execute(_SQL["record_runner"], key.machine_id, runner_id)
    return True


async def _undo(registrar: Registrar, intent: _Intent, minted: _Minted) -> None:
    """What does not work now is done by the sweepers: by the name, or as a zombie."""
    if minted.runner_id == UNKNOWN_ID:
        return
    try:
        with trio.move_on_after(UNDO_S):
            await registrar.github.delete_runner(scope_of(intent.place), minted.runner_id)
    except ForgeTrouble as trouble:
        await keep_problem(registrar.services, intent.place, trouble.problem)
