"""`nimbus jobs`: submit, show, watch and cancel jobs over the control plane's API. Holds no rule of the business.

Output for people is an aligned table; `--json` gives the API's own objects. Errors say the next command.
"""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

import click
import httpx2
import trio

from nimbus.cli.access import choose_token
from nimbus.cli.joblist import events, list_jobs, why
from nimbus.cli.jobpage import HEAD, Job, describe_attestation, describe_job, describe_usage, exit_status, row
from nimbus.cli.plane import call, connection_options, parse_mib, print_json, run_with
from nimbus.cli.tables import cell, render_table, sentence, terminal_width
from nimbus.model.errors import NotFound, Refused
from nimbus.model.labels import Arch
from nimbus.runtime.retry import Backoff, retry_unavailable
from nimbus.wire.tokens import Audience

POLL_S = 0.5
ENDED = frozenset({"completed", "lost"})


@click.group()
def jobs() -> None:
    """List, submit and cancel jobs.

    \b
    Examples:
      nimbus jobs submit --image base --cmd 'echo hello' --wait
      nimbus jobs recent --limit 5
      nimbus jobs list --state queued,in_progress --org octo-org
      nimbus jobs show 12
      nimbus jobs why 12
      nimbus jobs events 12
      nimbus jobs cancel 12
    """


jobs.add_command(list_jobs)
jobs.add_command(why)
jobs.add_command(events)


@jobs.command()
@connection_options
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many, newest first.")
def recent(base_url: str, token: str | None, as_json: bool, limit: int) -> None:
    """The newest jobs."""

    async def ask(http: httpx2.AsyncClient) -> Job:
        return await call(http, "GET", f"/api/jobs/recent?limit={limit}")

    reply = run_with(base_url, choose_token(token, Audience.ADMIN), ask)
    if as_json:
        print_json(reply)
    elif not reply["jobs"]:
        click.echo("no job yet; try: nimbus jobs submit --cmd 'uname -a' --wait")
    else:
        click.echo(render_table(HEAD, map(row, reply["jobs"]), terminal_width()))


@jobs.command()
@connection_options
def status(base_url: str, token: str | None, as_json: bool) -> None:
    """The queue's health: what waits, what runs, which hosts answer."""

    async def ask(http: httpx2.AsyncClient) -> Job:
        return await call(http, "GET", "/api/status")

    reply = run_with(base_url, choose_token(token, Audience.ADMIN), ask)
    if as_json:
        print_json(reply)
        return
    counts = [("machines " + state, str(count)) for state, count in reply["machines"].items() if count]
    counts += [("jobs " + state, str(count)) for state, count in reply["jobs"].items() if count]
    if reply["oldest_queued_s"] is not None:
        counts.append(("oldest in queue", f"{reply['oldest_queued_s']:.0f} s"))
    if reply.get("bell") == "polling":
        counts.append(("bell", "Redis is away: hosts find work some seconds later"))
    click.echo(render_table(("QUEUE", ""), counts or [("empty", "")]))
    agents = [
        (cell(each["agent_id"]), each["state"], cell(each["version"]), f"{each['silent_s']:.0f} s ago")
        for each in reply["agents"]
    ]
    click.echo("")
    click.echo(render_table(("AGENT", "STATE", "VERSION", "SEEN"), agents or [("none has enrolled", "", "", "")]))


@jobs.command()
@connection_options
@click.argument("job_id", type=click.IntRange(1))
def show(base_url: str, token: str | None, as_json: bool, job_id: int) -> None:
    """One job, by Nimbus' number or GitHub's."""

    async def ask(http: httpx2.AsyncClient) -> Job:
        return await find(http, job_id)

    job = run_with(base_url, choose_token(token, Audience.ADMIN), ask)
    if as_json:
        print_json(job)
        return
    click.echo(render_table(("JOB", str(job["job_id"])), describe_job(job), terminal_width()))
    for machine in job["machines"]:
        click.echo("")
        lines = [(name, cell(machine[name])) for name in ("state", "fence", "agent_id", "ending", "exit_code", "cause")]
        lines.append(("used", describe_usage(machine.get("usage"))))
        lines.append(("booted", describe_attestation(machine.get("attestation"))))
        click.echo(render_table(("MACHINE", str(machine["machine_id"])), lines, terminal_width()))


@jobs.command()
@connection_options
@click.option("--image", default=None, help="What the VM boots; the control plane's default image when left out.")
@click.option("--cmd", "line", default=None, help="A shell line; or give the words after --.")
@click.option("--env", "-e", "pairs", multiple=True, metavar="K=V", help="Environment of the command; repeatable.")
@click.option("--timeout", "timeout_s", type=float, default=None, metavar="S", help="Seconds until it is stopped.")
@click.option("--size", default=None, help="A machine as labels name it: 4cpu-8gb, 4cpu-8gb-20gb-disk-arm64.")
@click.option("--cpus", type=click.IntRange(1), default=None, help="vCPUs.")
@click.option("--memory", default=None, help="Guest memory, like 512M or 2G.")
@click.option("--disk", default=None, help="Guest disk, like 20G.")
@click.option("--arch", type=click.Choice([arch.value for arch in Arch]), default=None, help="x64 when left out.")
@click.option("--org-id", type=click.IntRange(1), default=None, help="The org it belongs to, for a token of all orgs.")
@click.option("--name", default=None, help="What lists call it.")
@click.option("--priority", type=click.IntRange(-100, 100), default=None, help="Within its org; above 0: operators.")
@click.option("--idempotency-key", default=None, help="The same key gives the same job; a fresh one when left out.")
@click.option("--wait", is_flag=True, help="Wait for the end; the command's exit status is ours.")
@click.argument("argv", nargs=-1)
def submit(base_url: str, token: str | None, as_json: bool, argv: tuple[str, ...], **options: Any) -> int:
    """Run a command in a microVM of its own, on any host.

    \b
    Examples:
      nimbus jobs submit --image base --cmd 'echo $WHO' --env WHO=you --wait
      nimbus jobs submit --memory 1G --timeout 600 -- make -C /src test
      nimbus jobs submit --size 4cpu-8gb --priority -10 -- make nightly
    """
    body = render_submission(argv, options)

    async def act(http: httpx2.AsyncClient) -> Job:
        # the key makes it safe to send again what may already have arrived
        job = await retry_unavailable(lambda: call(http, "POST", "/api/jobs", body), Backoff(), attempts=3)
        return await wait_end(http, job["job_id"]) if options["wait"] else job

    job = run_with(base_url, partial(choose_token, token, Audience.ADMIN, role="admin"), act)
    if as_json:
        print_json(job)
    elif options["wait"]:
        click.echo(f"job {job['job_id']} {job['state']}: {job['conclusion'] or job['cause'] or ''}".rstrip(": "))
    else:
        click.echo(f"job {job['job_id']} {job['state']}; watch it: nimbus logs --job-id {job['job_id']} --follow")
    return exit_status(job) if options["wait"] else 0


@jobs.command()
@connection_options
@click.argument("job_id", type=click.IntRange(1))
def cancel(base_url: str, token: str | None, as_json: bool, job_id: int) -> None:
    """Cancel a job: at once while it is queued, by asking its host to stop while it runs."""

    async def ask(http: httpx2.AsyncClient) -> Job:
        job = await find(http, job_id)
        return await call(http, "POST", f"/api/jobs/{job['job_id']}/cancel")

    reply = run_with(base_url, choose_token(token, Audience.ADMIN, role="admin"), ask)
    if as_json:
        print_json(reply)
    else:
        state = f"{reply['state']}{': ' + cell(reply['conclusion']) if reply['conclusion'] else ''}"
        click.echo(f"job {job_id} {state}; {sentence(reply['happens'])}")


# --- requests ----------------------------------------------------------------------------------------------------


async def find(http: httpx2.AsyncClient, job_id: int) -> Job:
    try:
        return await call(http, "GET", f"/api/jobs/{job_id}")
    except NotFound as error:
        raise NotFound(f"{error}; the newest are listed by: nimbus jobs recent") from error


async def wait_end(http: httpx2.AsyncClient, job_id: int) -> Job:
    """The job once it has ended, through restarts of the control plane."""
    while True:
        job = await retry_unavailable(lambda: find(http, job_id), Backoff(), attempts=8)
        if job["state"] in ENDED:
            return job
        await trio.sleep(POLL_S)


# --- values ------------------------------------------------------------------------------------------------------


def render_submission(argv: Sequence[str], options: dict[str, Any]) -> Job:
    """Pure: the request's body from the command line."""
    if bool(argv) == bool(options["line"]):
        raise Refused("give the command either as --cmd 'a shell line' or as words after --")
    if options["timeout_s"] is not None and not math.isfinite(options["timeout_s"]):
        raise Refused("--timeout takes a number of seconds")
    body: Job = {"argv": list(argv)} if argv else {"cmd": options["line"]}
    body["idempotency_key"] = options["idempotency_key"] or str(uuid.uuid4())
    # never the whole line: lists show the name, and a line may hold a secret
    body["name"] = options["name"] or (PurePath(argv[0]).name if argv else "shell line")
    if options["pairs"]:
        body["env"] = dict(parse_pair(pair) for pair in options["pairs"])
    if options["memory"] is not None:
        body["mem_mib"] = parse_mib(options["memory"])
    if options["disk"] is not None:
        body["disk_mib"] = parse_mib(options["disk"], "--disk")
    for name in ("image", "timeout_s", "cpus", "arch", "org_id", "size", "priority"):
        if options[name] is not None:
            body[name] = options[name]
    return body


def parse_pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise Refused(f"--env takes NAME=VALUE, not {name!r}")
    return name, value


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["jobs", *sys.argv[1:]]))
