"""Budgets: the jobs that an org may ask for in an interval, and the tokens that an agent may mint.

Whatever asks for a job takes it from the same budget of its org: our own API here, GitHub's events in admission.py.
Never called inside a transaction. Called by jobs.py, admission.py and agents_api.py.
"""

from __future__ import annotations

import hashlib

from nimbus.control_plane.services import JobRules, Services
from nimbus.model.errors import RateLimited
from nimbus.runtime.limiter import WithoutRedis
from nimbus.runtime.windows import Limit, Taken


def limit_of(rules: JobRules) -> Limit:
    """How many jobs of one org in how long."""
    return Limit(rules.rate_limit, rules.rate_interval_s)


def key_of(org_id: int) -> str:
    """Where an org's jobs are counted."""
    return f"jobs:{org_id}"


async def take_job(services: Services, org_id: int, line_s: float | None) -> Taken:
    """One job of the org's budget for a submission; RateLimited where there is none.

    Older jobs of the org that are kept until their turn comes go first (`line_s`: until that of the last one): GitHub
    gives up a job that waits for a day, and a program that submits in a loop would leave them nothing.
    """
    limit = limit_of(services.job_rules)
    retry_s = line_s
    if retry_s is None:
        taken = await services.limiter.take(key_of(org_id), limit)
        if taken.granted:
            return taken
        retry_s = taken.retry_after_s
    services.metrics.org_rate_limits_hit.inc()
    raise RateLimited(f"org {org_id} asks for more than {limit.most} jobs in {limit.interval_s:g} seconds", retry_s)


async def give_back(services: Services, org_id: int, taken: Taken) -> None:
    """What was taken was not used."""
    await services.limiter.settle(key_of(org_id), limit_of(services.job_rules), taken, 0)


async def count_mint(services: Services, agent_id: str) -> None:
    """Note one token of an agent; RateLimited where it is one too many.

    Without Redis each process counts by itself, whatever is chosen for jobs: an agent that can't renew its token
    loses its host.
    """
    access = services.access
    key = f"mint:{hashlib.sha256(agent_id.encode()).hexdigest()}"  # the name is the caller's
    limit = Limit(access.agent_token_rate_limit, access.agent_token_rate_interval_s)
    taken = await services.limiter.take(key, limit, without_redis=WithoutRedis.LOCAL)
    if not taken.granted:
        wait_s = taken.retry_after_s
        raise RateLimited(f"agent {agent_id} enrols too often: wait {wait_s:.0f} seconds", wait_s)
