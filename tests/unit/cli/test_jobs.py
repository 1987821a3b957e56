"""`nimbus jobs` and `nimbus auth`: what people type, against a real control plane."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from nimbus.cli.jobpage import describe_attestation, describe_job, describe_usage, exit_status, row
from nimbus.cli.jobs import render_submission
from nimbus.cli.plane import parse_mib
from nimbus.model.errors import Refused
from nimbus.wire.tokens import Audience, hmac_key, render_token, verify_token
from tests.services import RedisServer
from tests.unit.control_plane.plane import ADMIN_SECRET, Plane, open_plane

ROOT = Path(__file__).parents[3]
OPTIONS: dict[str, object] = {
    "line": None, "idempotency_key": None, "name": None, "pairs": (), "memory": None, "image": None,
    "timeout_s": None, "cpus": None, "arch": None, "org_id": None, "size": None, "disk": None, "priority": None,
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    out: str
    err: str


def nimbus_cli(module: str, *words: str, **environ: str) -> Said:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NIMBUS_")}
    command = [sys.executable, "-m", f"nimbus.cli.{module}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=clean | environ)
    return Said(done.returncode, done.stdout, done.stderr)


async def jobs(plane: Plane, *words: str, secret: str = ADMIN_SECRET) -> Said:
    def run() -> Said:
        return nimbus_cli("jobs", *words, NIMBUS_CONTROL_PLANE_URL=plane.url, NIMBUS_JWT_SECRET=secret)

    return await trio.to_thread.run_sync(run)


@pytest.mark.services
async def test_a_submitted_job_is_waited_for_and_its_exit_status_is_ours(database_dsn: str, redis_url: str) -> None:
    said: list[Said] = []
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()

        async def submit() -> None:
            said.append(
                await jobs(plane, "submit", "--wait", "--memory", "1G", "-e", "A=b", "--", "sh", "-c", "exit 7")
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            grant = await plane.lease(agent, wait_s=20)
            assert grant is not None
            await plane.finish(agent, grant, "failed", exit_code=7)
        listed = await jobs(plane, "recent")
        shown = await jobs(plane, "show", "1", "--json")
        status = await jobs(plane, "status")

    assert (grant["shape"]["mem_mib"], grant["command"]["env"]) == (1024, {"A": "b"})
    assert (said[0].status, said[0].out) == (7, "job 1 completed: failure\n")
    assert "failure" in listed.out
    assert json.loads(shown.out)["machines"][0]["exit_code"] == 7
    assert "agent-1" in status.out


@pytest.mark.services
async def test_the_status_says_that_hosts_are_not_woken_while_redis_is_away(
    database_dsn: str, redis_server: RedisServer
) -> None:
    async with open_plane(database_dsn, redis_server.url) as plane:
        await plane.services.bell.wait_connected()
        there = await jobs(plane, "status")
        await trio.to_thread.run_sync(redis_server.stop)
        while plane.services.bell.connected:  # noqa: ASYNC110 - nobody tells it
            await trio.sleep(0.01)
        away = await jobs(plane, "status")

    assert "Redis" not in there.out
    assert "Redis is away" in away.out


@pytest.mark.services
async def test_a_job_is_submitted_cancelled_and_a_wrong_number_told(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        submitted = await jobs(plane, "submit", "--cmd", "TOKEN=hunter2 ./run", "--json")
        number = json.loads(submitted.out)["job_id"]
        listed = await jobs(plane, "recent")
        cancelled = await jobs(plane, "cancel", str(number))
        unknown = await jobs(plane, "show", "999")
        refused = await jobs(plane, "recent", secret="w" * 40)

    assert "hunter2" not in listed.out
    assert cancelled.out == f"job {number} completed: cancelled; it is cancelled: no host had begun it\n"
    assert (unknown.status, "nimbus jobs recent" in unknown.err) == (2, True)
    assert (refused.status, refused.out) == (2, "")


@pytest.mark.services
async def test_the_documents_command_works_with_the_secret_that_never_leaves(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        words = ("recent", "--base-url", plane.url, "--token", ADMIN_SECRET, "--limit", "10")
        with_secret = await jobs(plane, *words)
        reader = render_token(
            hmac_key(ADMIN_SECRET), subject="me", audience=Audience.ADMIN, now_s=time.time(), ttl_s=60
        )
        with_jwt = await jobs(plane, *words[:4], reader, secret="")
        stranger = await jobs(plane, *words, secret="")

    assert with_secret.status == with_jwt.status == 0
    assert stranger.status == 2
    assert "NIMBUS_JWT_SECRET" in stranger.err


def test_a_control_plane_that_is_away_is_said_with_the_next_command() -> None:
    said = nimbus_cli("jobs", "recent", "--base-url", "http://127.0.0.1:9", NIMBUS_JWT_SECRET=ADMIN_SECRET)

    assert said.status == 1
    assert "nimbus up" in said.err
    assert "Traceback" not in said.err


def test_an_enrolment_token_is_minted_for_one_agent() -> None:
    secret = "e" * 40
    said = nimbus_cli("auth", "--agent-id", "agent-001", "--secret", secret, "--ttl", "3600")
    key = hmac_key(secret).verify_key()
    claims = verify_token(said.out.strip(), [key], audience=Audience.AGENT_ENROLMENT, now_s=time.time())

    assert claims.subject == "agent-001"
    assert len(str(claims.extra["jti"])) == 36  # what `nimbus admin token revoke` takes
    assert 3590 < claims.expires_at_s - time.time() <= 3600


def test_an_enrolment_token_needs_a_real_secret_and_a_real_name() -> None:
    short = nimbus_cli("auth", "--agent-id", "a", "--secret", "short")
    spaced = nimbus_cli("auth", "--agent-id", "a b", "--secret", "e" * 40)

    assert (short.status, spaced.status) == (2, 2)
    assert "32 bytes" in short.err
    assert "short" not in short.out


@pytest.mark.parametrize(("text", "mib"), [("512M", 512), ("2G", 2048), ("2g", 2048), ("96", 96), ("1GiB", 1024)])
def test_sizes_are_read_as_people_write_them(text: str, mib: int) -> None:
    assert parse_mib(text) == mib


@pytest.mark.parametrize("text", ["", "M", "1T", "-1M", "1.5G", "512 M", "1e3"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_mib(text)


def test_a_submission_is_either_a_line_or_words_and_carries_a_key_of_its_own() -> None:
    first = render_submission(("/bin/true",), OPTIONS)
    second = render_submission(("/bin/true",), OPTIONS)

    assert first["argv"] == ["/bin/true"]
    assert first["name"] == "true"
    assert first["idempotency_key"] != second["idempotency_key"]
    for argv, line in (((), None), (("a",), "b")):
        with pytest.raises(Refused):
            render_submission(argv, OPTIONS | {"line": line})


@pytest.mark.parametrize(
    ("conclusion", "machine", "status"),
    [
        ("success", {"ending": "done", "exit_code": 0}, 0),
        ("failure", {"ending": "failed", "exit_code": 3}, 3),
        ("failure", {"ending": "failed", "signal": 9}, 137),
        ("timed_out", {"ending": "timed_out", "signal": 15}, 124),
        ("failure", {"ending": "host_fault"}, 125),
        (None, {"ending": None}, 1),
    ],
)
def test_the_exit_status_is_the_commands_own(conclusion: str | None, machine: dict[str, object], status: int) -> None:
    assert exit_status({"conclusion": conclusion, "machines": [machine]}) == status


@pytest.mark.parametrize(
    ("usage", "shown"),
    [
        (None, ""),
        ({}, ""),
        ({"cpu_ms": 1250}, "1.2 s CPU"),
        ({"cpu_ms": 0, "memory_bytes": 2**30, "sent_bytes": 2**19}, "0.0 s CPU, 1024.0 MiB memory, 0.5 MiB sent"),
    ],
)
def test_what_a_vm_used_is_shown_as_far_as_its_host_counts_it(usage: dict[str, int] | None, shown: str) -> None:
    assert describe_usage(usage) == shown


BOOTED = {
    "image": "base", "manifest": "a" * 64, "kernel": "b" * 64, "initramfs": "c" * 64, "rootfs": "d" * 64,
    "verified_at": 1.8e9, "overridden": [], "template": None,
}  # fmt: skip
DIGESTS = "image base: kernel bbbbbbbbbbbb, initramfs cccccccccccc, rootfs dddddddddddd"


@pytest.mark.parametrize(
    ("attested", "shown"),
    [
        (None, ""),
        (BOOTED, DIGESTS),
        (BOOTED | {"template": "e" * 64}, f"{DIGESTS}, template eeeeeeeeeeee"),
        (BOOTED | {"overridden": ["kernel", "rootfs"]}, f"{DIGESTS} (kernel and rootfs of the host's own)"),
    ],
)
def test_what_a_machine_was_booted_from_is_shown_in_a_line(attested: dict[str, object] | None, shown: str) -> None:
    assert describe_attestation(attested) == shown


QUEUED: dict[str, Any] = {
    "job_id": 3, "state": "queued", "conclusion": None, "source": "github", "name": "build",
    "queued_at": "2026-11-21T08:00:00+00:00", "started_at": None, "completed_at": None, "cause": None,
    "learned_by": "webhook", "repaired_by": None, "labels": ["nimbus-4cpus", "x\x1b[2J"], "runner_name": None,
    "html_url": "https://github.com/octo-org/api/actions/runs/7/job/9",
    "waits_for": "the author of its workflow, who must change its labels: nimbus-4cpus is no size: \x1b[2J",
}  # fmt: skip


def test_a_job_that_waits_says_in_full_what_for_and_nothing_in_it_drives_the_terminal() -> None:
    page = dict(describe_job(QUEUED))
    assert page["waits for"].startswith("the author of its workflow, who must change its labels: nimbus-4cpus is no")
    assert "\x1b" not in page["waits for"]
    assert row(QUEUED)[-1] == page["waits for"]


def test_the_page_of_a_job_of_github_shows_its_labels_and_where_it_is_and_no_runner_before_there_is_one() -> None:
    page = dict(describe_job(QUEUED))
    assert page["labels"].startswith("nimbus-4cpus, x")
    assert "\x1b" not in page["labels"]
    assert (page["on GitHub"], "runner" in page) == (QUEUED["html_url"], False)


def test_a_job_that_only_a_repair_moved_on_says_so() -> None:
    assert "repaired by" not in dict(describe_job(QUEUED))
    page = dict(describe_job(QUEUED | {"learned_by": "poll", "repaired_by": "redelivery", "waits_for": None}))
    assert (page["learned by"], page["repaired by"]) == ("poll", "redelivery")
    assert "waits for" not in page
