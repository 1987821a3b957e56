"""`nimbus hosts`: see hosts and steer them from afar, over the control plane's API. Holds no rule of the business.

Output for people is an aligned table; `--json` gives the API's own objects. What stands on the host itself is
`nimbus agent` and `nimbus vms`.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from urllib.parse import quote

import click
import httpx2
import trio

from nimbus.cli.access import choose_token
from nimbus.cli.plane import Reply, call, connection_options, print_json, run_with
from nimbus.cli.tables import cell, render_table, sentence, terminal_width
from nimbus.runtime.retry import Backoff, retry_unavailable
from nimbus.wire.tokens import Audience

POLL_S = 1.0
WATCH_ATTEMPTS = 8  # of a look in a row, while the control plane is away
INTERRUPTED = 130  # 128 + SIGINT, as a shell says it


@click.group()
def hosts() -> None:
    """The hosts of this service: what they do, what they have left; cordon and drain them from afar.

    \b
    nimbus hosts list
    nimbus hosts show host-1              with its machines and its ledger
    nimbus hosts cordon host-1            no new job; what runs goes on
    nimbus hosts drain host-1 --wait      no new job and no pool; wait until nothing is left
    nimbus hosts uncordon host-1          back to work
    nimbus hosts forget host-1            one that is gone for good

    A wish holds until another: restarts of the host, its agent or the control plane change nothing. To end the agent as
    well: `nimbus agent drain`, on the host itself.
    """


@hosts.command(name="list")
@connection_options
def list_hosts(base_url: str, token: str | None, as_json: bool) -> None:
    """Every host: where it stands, what it has left, what is wrong with it."""
    found = run_with(base_url, choose_token(token, Audience.ADMIN), _list_all)
    if as_json:
        print_json(found)
    elif not found["hosts"]:
        click.echo("no host has enrolled yet; `nimbus auth` mints the token for one")
    else:
        head = ("HOST", "STATE", "MACHINES", "CPUS", "MEMORY", "SLOTS", "DISK", "POOL", "VERSION", "SEEN", "PROBLEM")
        click.echo(render_table(head, map(row, found["hosts"]), terminal_width()))


@hosts.command()
@connection_options
@click.argument("host")
def show(base_url: str, token: str | None, as_json: bool, host: str) -> None:
    """One host, the machines that are leased to it, and the records of its ledger as it last told them."""
    found = run_with(base_url, choose_token(token, Audience.ADMIN), lambda http: _show(http, host))
    if as_json:
        print_json(found)
    else:
        click.echo(render_host(found, terminal_width()))


@hosts.command()
@connection_options
@click.argument("host")
def cordon(base_url: str, token: str | None, as_json: bool, host: str) -> None:
    """Grant it no new job; what runs on it goes on, and its pool stays."""
    _say_wanted(_want(base_url, token, host, "cordoned"), as_json)


@hosts.command()
@connection_options
@click.argument("host")
def uncordon(base_url: str, token: str | None, as_json: bool, host: str) -> None:
    """Have it work again, after a cordon or a drain."""
    _say_wanted(_want(base_url, token, host, "working"), as_json)


@hosts.command()
@connection_options
@click.argument("host")
@click.option("--wait", is_flag=True, help="Until nothing is left on it; Ctrl-C ends the waiting, not the drain.")
def drain(base_url: str, token: str | None, as_json: bool, host: str, wait: bool) -> int:
    """Grant it no new job and give up its pool; its agent stays, and works again after `nimbus hosts uncordon`.

    \b
    nimbus hosts drain host-1 --wait && ssh host-1 reboot

    It waits as long as the jobs take. With --json and --wait: one object a line.
    """
    wanted = _want(base_url, token, host, "drained")
    if not wait:
        _say_wanted(wanted, as_json)
        return 0
    try:
        run_with(base_url, partial(choose_token, token, Audience.ADMIN), lambda http: _watch(http, host, as_json))
    except KeyboardInterrupt:
        click.echo(f"nimbus: no longer watching; host {cell(host)} goes on draining", err=True)
        return INTERRUPTED
    return 0


@hosts.command()
@connection_options
@click.argument("host")
def forget(base_url: str, token: str | None, as_json: bool, host: str) -> None:
    """Drop a host that is gone for good: silent, and without a machine. One that comes back enrols anew."""

    async def ask(http: httpx2.AsyncClient) -> Reply:
        return await call(http, "DELETE", _path(host))

    reply = run_with(base_url, choose_token(token, Audience.ADMIN, role="admin"), ask)
    if as_json:
        print_json(reply)
    else:
        click.echo(f"host {cell(host)} is forgotten")


# --- requests ----------------------------------------------------------------------------------------------------


async def _list_all(http: httpx2.AsyncClient) -> Reply:
    """Every page."""
    found: list[Reply] = []
    after: str | None = ""
    while after is not None:
        page = await call(http, "GET", f"/api/agents?after={quote(after, safe='')}")
        found += page["hosts"]
        after = page["next"]
    return {"hosts": found}


async def _show(http: httpx2.AsyncClient, host: str) -> Reply:
    return await call(http, "GET", _path(host))


async def _watch(http: httpx2.AsyncClient, host: str, as_json: bool) -> Reply:
    """A line now and at each change, until the host is drained; through restarts of the control plane."""
    told = ""
    while True:
        seen = await retry_unavailable(lambda: _show(http, host), Backoff(), WATCH_ATTEMPTS)
        line = json.dumps(plan_progress(seen)) if as_json else describe_progress(seen)
        if line != told:
            click.echo(line)
            told = line
        if seen["drained"] or seen["wanted"] != "drained":
            return seen
        await trio.sleep(POLL_S)


def _want(base_url: str, token: str | None, host: str, wanted: str) -> Reply:
    async def ask(http: httpx2.AsyncClient) -> Reply:
        return await call(http, "PUT", f"{_path(host)}/wanted", {"wanted": wanted})

    return run_with(base_url, choose_token(token, Audience.ADMIN, role="admin"), ask)


def _path(host: str) -> str:
    return f"/api/agents/{quote(host, safe='')}"


def _say_wanted(host: Reply, as_json: bool) -> None:
    if as_json:
        print_json(host)
    else:
        click.echo(describe_progress(host))


# --- values ------------------------------------------------------------------------------------------------------


def plan_progress(host: Reply) -> Reply:
    """Pure: what a program is told of a drain."""
    leased = [{name: each[name] for name in ("machine_id", "job_id", "state")} for each in host["leased"]]
    return {"host": host["agent_id"], "state": host["state"], "drained": host["drained"], "left": leased}


def describe_progress(host: Reply) -> str:
    """Pure: one line for what is wanted of a host and how far it is."""
    name, count = cell(host["agent_id"]), host["machines"]
    left = "nothing runs on it" if not count else f"{count} machine{'s' if count > 1 else ''} left"
    jobs = [str(each["job_id"]) for each in host.get("leased", ()) if each["job_id"] is not None]
    named = f" (job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)})" if jobs else ""
    if host["wanted"] == "working":
        return f"host {name} takes jobs"
    if host["wanted"] == "cordoned":
        return f"host {name} takes no new job; {left}{named}"
    if host["drained"]:
        return f"host {name} is drained: nothing is left on it"
    if not count:
        return f"host {name} drains: no job is left, it gives up what waits there"
    return f"host {name} drains: {left}{named}"


def row(host: Reply) -> tuple[str, ...]:
    """One line of the list."""
    pool = sum(host["pool"].values())
    return (
        cell(host["agent_id"]),
        cell(host["state"]),
        str(host["machines"]),
        _of(host["free_cpus"], host["cpus"]),
        _of(_gib(host["free_mem_mib"]), _gib(host["mem_mib"]), "G"),
        _of(host["free_slots"], host["slots"]),
        _of(_gib(host["free_disk_mib"]), _gib(host["disk_mib"]), "G"),
        str(pool) if pool else "",
        cell(host["version"]) + (" (behind)" if host["behind"] else ""),
        f"{host['silent_s']:.0f} s ago",
        sentence("; ".join(host["problems"])),
    )


def render_host(host: Reply, width: int | None = None) -> str:
    """One host on a page."""
    by = "" if host["wanted_by"] is None else f", by {cell(host['wanted_by'])} since {cell(host['wanted_at'])[:19]}"
    lines = [
        ("state", cell(host["state"])),
        ("wanted", f"{host['wanted']}{by}"),
        ("version", cell(host["version"]) + (" (behind)" if host["behind"] else "")),
        ("VMM", cell(host["vmm"])),
        ("arch", cell(host["arch"])),
        ("labels", sentence(", ".join(host["labels"]))),
        ("CPUs", f"{_of(host['free_cpus'], host['cpus'])} free"),
        ("memory", f"{_of(_gib(host['free_mem_mib']), _gib(host['mem_mib']), 'G')} free"),
        ("slots", f"{_of(host['free_slots'], host['slots'])} free"),
        ("disk", f"{_of(_gib(host['free_disk_mib']), _gib(host['disk_mib']), 'G')} free"),
        ("pool", ", ".join(f"{number} {cell(kind)}" for kind, number in sorted(host["pool"].items())) or "none"),
        ("seen", f"{host['silent_s']:.0f} s ago"),
    ]
    lines += [("problem", sentence(problem)) for problem in host["problems"]]
    parts = [render_table((cell(host["agent_id"]), ""), lines, width)]
    if host["leased"]:
        leased = [
            (str(each["machine_id"]), str(each["fence"]), cell(each["state"]), _or_none(each["job_id"]))
            for each in host["leased"]
        ]
        parts += ["", render_table(("MACHINE", "FENCE", "STATE", "JOB"), leased)]
    if host["records"] is None:
        parts += ["", "its ledger: the copy is away (NIMBUS_AGENT_STATE_DATABASE_URL)"]
    elif host["records"]:
        told = [
            (cell(each["vm"]), cell(each["state"]), _or_none(each["machine_id"]), sentence(" ".join(each["claims"])))
            for each in host["records"]
        ]
        parts += ["", render_table(("VM", "STATE", "MACHINE", "CLAIMS"), told, width)]
    return "\n".join(parts)


def _of(free: int | None, total: int | None, unit: str = "") -> str:
    return f"{_or_none(free)}/{_or_none(total)}{unit if total is not None else ''}"


def _gib(mib: int | None) -> int | None:
    return None if mib is None else mib // 1024


def _or_none(value: int | None) -> str:
    return "-" if value is None else str(value)


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["hosts", *sys.argv[1:]]))
