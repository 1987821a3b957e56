"""schemathesis over a control plane's own document: everything that it describes is called, rightly and wrongly.

    python -m tests.acceptance.apifuzz --seconds 600        (make fuzz-api)

A process of the control plane with PostgreSQL and Redis of its own, called as operator (and, where a route is theirs,
as agent, service, Prometheus and GitHub) and then as a tenant. No answer may be a 5xx, and each must be as the document
says. test_api_fuzz.py does the same for a short time.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2

from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.acceptance.fleet import Fleet, running_fleet
from tests.acceptance.stack import LIMIT_S
from tests.services import open_postgres, open_redis, open_schema

TTL_S = 86400.0
SPARE_S = 120.0  # beyond the time that schemathesis is given: it begins, and ends what it began
NOT_LIMITED = "1000000000"
_CONFIG = """\
hooks = "tests.acceptance.apifuzz_hooks"
request-timeout = 30.0
cache.enabled = false
warnings = false

[generation]
database = "none"

[checks.positive_data_acceptance]
# what fits the document may still meet the state of things: no such job, another's lease, no longer needed
expected-statuses = [200, 201, 202, 204, 304, 401, 403, 404, 409, 410]
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 408, 409, 410, 413]

[[operations]]
# cursors are ours alone to make; a command's size and a machine's have rules across fields that no schema tells
include-operation-id = ["listJobs", "listJobEvents", "submitJob"]
[operations.checks.positive_data_acceptance]
expected-statuses = [200, 201, 400, 401, 403, 404, 409]
[[operations]]
# a host may be called `lease`: the paths of both routes are one then, and each has its own methods
include-path-regex = "^/api/agents/"
[operations.checks.allow_header_conformance]
enabled = false

[auth.openapi.admin]
bearer = "{admin}"
[auth.openapi.service]
bearer = "{service}"
[auth.openapi.enrolment]
bearer = "{enrolment}"
[auth.openapi.agent]
bearer = "{agent}"
[auth.openapi.metrics]
bearer = "{metrics}"
"""


@dataclass(frozen=True)
class Target:
    """A control plane to be called, and what opens it."""

    fleet: Fleet
    metrics_token: str
    agent_token: str

    def config(self, **admin_claims: object) -> str:
        secret = self.fleet.env["NIMBUS_JWT_SECRET"]
        return _CONFIG.format(
            admin=_mint(secret, "fuzzer", Audience.ADMIN, role="admin", **admin_claims),
            service=_mint(secret, "service:logs", Audience.INTERNAL),
            enrolment=_mint(self.fleet.secret, "fuzzed-host", Audience.AGENT_ENROLMENT),
            agent=self.agent_token,
            metrics=self.metrics_token,
        )


def _mint(secret: str, subject: str, audience: Audience, **claims: object) -> str:
    return render_token(
        hmac_key(secret), subject=subject, audience=audience, now_s=time.time(), ttl_s=TTL_S, claims=claims
    )


def open_target(stack: ExitStack, folder: Path, dsn: str, redis_url: str) -> Target:
    """A control plane without limits, which would only hide what stands behind them, and an agent that is enrolled."""
    metrics_token = secrets.token_hex(16)
    settings = {
        "NIMBUS_METRICS_TOKEN": metrics_token,
        "NIMBUS_ORG_JOB_RATE_LIMIT": NOT_LIMITED,
        "NIMBUS_AGENT_TOKEN_RATE_LIMIT": NOT_LIMITED,
        "NIMBUS_AGENT_TOKEN_TTL": str(round(TTL_S)),
        "NIMBUS_GITHUB_API_URL": "http://127.0.0.1:9",
        "NIMBUS_LABEL_MAX_MEMORY_GB": "16384",
        "NIMBUS_LABEL_MAX_DISK_GB": "65536",
    }
    fleet = stack.enter_context(running_fleet(folder, dsn, redis_url, logs=False, **settings))
    token = _mint(fleet.secret, "fuzzed-host", Audience.AGENT_ENROLMENT)
    body = {"version": "0.1.0", "boot_id": "fuzz", "cpus": 64, "mem_mib": 2**20}
    url = f"{fleet.env['NIMBUS_CONTROL_PLANE_URL']}/api/agents/enrol"
    reply = httpx2.post(url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=LIMIT_S)
    reply.raise_for_status()
    return Target(fleet, metrics_token, reply.json()["token"])


def fuzz(target: Target, folder: Path, config: str, seconds: int, *more: str) -> subprocess.CompletedProcess[str]:
    """One run of schemathesis; its exit status is 0 where it found nothing."""
    file = folder / "schemathesis.toml"
    file.write_text(config)
    file.chmod(0o600)
    argv = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(file), "--no-color", "run"]
    argv += [f"{target.fleet.env['NIMBUS_CONTROL_PLANE_URL']}/api/openapi.json", "--max-time", str(seconds), *more]
    env = {**target.fleet.env, "APIFUZZ_WEBHOOK_SECRET": target.fleet.plane.env["NIMBUS_GITHUB_WEBHOOK_SECRET"]}
    root = str(Path(__file__).parents[2])
    env = {**env, "PYTHONPATH": root, "COLUMNS": "160"}
    return subprocess.run(
        argv, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        timeout=seconds + SPARE_S,
    )  # fmt: skip


AS_TENANT = ("--include-tag", "jobs", "--include-tag", "orgs", "--include-tag", "operations")


def main() -> int:
    """Call everything for so many seconds; exit status 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimbus-fuzz-")))
        dsn = stack.enter_context(open_schema(stack.enter_context(open_postgres())))
        target = open_target(stack, folder, dsn, stack.enter_context(open_redis()).url)
        runs = [
            fuzz(target, folder, target.config(), max(1, asked.seconds * 2 // 3)),
            fuzz(target, folder, target.config(org_id=1), max(1, asked.seconds // 3), *AS_TENANT),
        ]
        for run in runs:
            print(run.stdout)  # noqa: T201 - it is what was asked for
    return int(any(run.returncode for run in runs))


if __name__ == "__main__":
    raise SystemExit(main())
