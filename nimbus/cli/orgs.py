"""`nimbus orgs`: see and limit organisations, give one labels of its own, register what its output must not show.

Over the control plane's API; holds no rule of the business. Output for people is an aligned table; `--json` gives the
API's own objects.
"""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import quote

import click
import httpx2

from nimbus.cli.access import choose_token
from nimbus.cli.plane import Reply, call, connection_options, parse_mib, print_json, run_with
from nimbus.cli.tables import cell, render_table, sentence, terminal_width
from nimbus.model.errors import Refused
from nimbus.model.labels import Arch
from nimbus.wire.tokens import Audience

NONE = "none"
_MAX_VALUE_BYTES = 64 * 1024  # of UTF-8: the API says how many characters it takes
_LIMITS = ("max_machines", "max_cpus", "runner_group_id", "weight")


@click.group()
def orgs() -> None:
    """Organisations: what they hold, what GitHub refuses them, their limits and their own labels.

    ORG is Nimbus' number or the login on GitHub. An organisation is known once GitHub has told of one of its jobs, or
    of the App's installation on it.

    \b
    Examples:
      nimbus orgs list
      nimbus orgs show octo-org
      nimbus orgs limit octo-org --max-machines 20 --max-cpus 64
      nimbus orgs limit octo-org --max-cpus none --weight 200
      nimbus orgs label set octo-org big --cpus 16 --memory 64G --disk 100G
      nimbus orgs label remove octo-org big
      nimbus orgs mask add octo-org deploy-key < key.pem

    \b
    A workflow then says:  runs-on: big
    A size needs no label of its own:  runs-on: nimbus-4cpu-8gb, or nimbus-8cpu-32gb-100gb-disk-arm64
    """


@orgs.command(name="list")
@connection_options
def list_orgs(base_url: str, token: str | None, as_json: bool) -> None:
    """Every organisation: what it holds, what GitHub refuses."""
    reply = _ask(base_url, token, "GET", "/api/orgs")
    if as_json:
        print_json(reply)
        return
    head = ("ORG", "LOGIN", "MACHINES", "CPUS", "WEIGHT", "QUEUED", "PROBLEM")
    click.echo(render_table(head, map(row, reply["orgs"]), terminal_width()))


@orgs.command()
@connection_options
@click.argument("org")
def show(base_url: str, token: str | None, as_json: bool, org: str) -> None:
    """One organisation, its labels, and who must act for it."""
    reply = _ask(base_url, token, "GET", _path(org))
    if as_json:
        print_json(reply)
    else:
        click.echo(render_org(reply, terminal_width()))


@orgs.command()
@connection_options
@click.argument("org")
@click.option("--max-machines", metavar="N", help="Machines at once; none: no limit but the hosts'.")
@click.option("--max-cpus", metavar="N", help="CPUs at once, of all its machines together; or none.")
@click.option("--runner-group", "runner_group_id", metavar="ID", help="GitHub's id of the runner group; or none.")
@click.option("--weight", metavar="N", help="Its share against the others'; none: 100.")
def limit(base_url: str, token: str | None, as_json: bool, org: str, **limits: str | None) -> None:
    """Set what it may hold at once, beyond which jobs wait, and its share of the hosts.

    An organisation of weight 200 comes to hold twice the CPUs of one of weight 100 where both have jobs that wait.

    \b
    Examples:
      nimbus orgs limit octo-org --max-machines 20
      nimbus orgs limit octo-org --weight 200
      nimbus orgs limit octo-org --max-machines none --max-cpus 64
    """
    reply = _ask(base_url, token, "PATCH", _path(org), body=render_limits(limits))
    if as_json:
        print_json(reply)
    else:
        click.echo(f"{cell(reply['login'])}: " + ", ".join(f"{name} {_or_none(reply[name])}" for name in _LIMITS))


@orgs.group()
def label() -> None:
    """Its own labels: words for runs-on in its workflows.

    \b
    Examples:
      nimbus orgs label set octo-org big --cpus 16 --memory 64G
      nimbus orgs label set octo-org pi --cpus 2 --memory 2G --arch arm64 --max-machines 3
      nimbus orgs label remove octo-org big
    """


@label.command(name="set")
@connection_options
@click.argument("org")
@click.argument("word", metavar="LABEL")
@click.option("--cpus", type=click.IntRange(1), required=True, help="vCPUs.")
@click.option("--memory", required=True, help="Guest memory, like 512M or 8G.")
@click.option("--disk", default=None, help="Guest disk, like 20G; the default machine's when left out.")
@click.option("--arch", type=click.Choice([arch.value for arch in Arch]), default=None, help="x64 when left out.")
@click.option("--image", default=None, help="What it boots; the control plane's default image when left out.")
@click.option("--max-machines", type=click.IntRange(0), default=None, help="Of this label at once.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=None, help="Before the organisation's others, or after."
)
def set_label(base_url: str, token: str | None, as_json: bool, org: str, word: str, **machine: Any) -> None:
    """Make a label, or change it; queued jobs follow at once.

    \b
    Example:
      nimbus orgs label set octo-org big --cpus 16 --memory 64G --disk 100G --max-machines 4
    """
    reply = _ask(base_url, token, "PUT", f"{_path(org)}/labels/{quote(word, safe='')}", body=render_machine(machine))
    if as_json:
        print_json(reply)
    else:
        click.echo(f"runs-on: {cell(reply['label'])} is {describe_machine(reply)}")


@label.command()
@connection_options
@click.argument("org")
@click.argument("word", metavar="LABEL")
def remove(base_url: str, token: str | None, as_json: bool, org: str, word: str) -> None:
    """Take a label away; jobs that wait for it are refused, and say so."""
    reply = _ask(base_url, token, "DELETE", f"{_path(org)}/labels/{quote(word, safe='')}")
    if as_json:
        print_json(reply)
    else:
        click.echo(f"{cell(reply['label'])} is no label any more")


@orgs.group()
def mask() -> None:
    """What is hidden in its jobs' output beside what each job tells: as it is, and in every common encoding.

    \b
    Examples:
      nimbus orgs mask add octo-org deploy-key < key.pem
      nimbus orgs mask list octo-org
      nimbus orgs mask remove octo-org deploy-key
    """


@mask.command(name="add")
@connection_options
@click.argument("org")
@click.argument("name")
def add_mask(base_url: str, token: str | None, as_json: bool, org: str, name: str) -> None:
    """Register a value, or another one in its place. It is read from standard input or asked for, and never shown.

    \b
    Examples:
      nimbus orgs mask add octo-org registry-password
      printenv REGISTRY_PASSWORD | nimbus orgs mask add octo-org registry-password
    """
    reply = _ask(base_url, token, "PUT", _mask_path(org, name), body={"value": read_value()})
    if as_json:
        print_json(reply)
    else:
        click.echo(f"{cell(reply['name'])} is hidden from now on: {reply['lines']} lines, {reply['bytes']} bytes")


@mask.command(name="list")
@connection_options
@click.argument("org")
def list_masks(base_url: str, token: str | None, as_json: bool, org: str) -> None:
    """Names, sizes and ages; the values are shown to nobody."""
    reply = _ask(base_url, token, "GET", f"{_path(org)}/masks")
    if as_json:
        print_json(reply)
        return
    rows = [
        (cell(each["name"]), str(each["lines"]), str(each["bytes"]), cell(each["created_at"]), cell(each["changed_at"]))
        for each in reply["masks"]
    ]
    click.echo(render_table(("NAME", "LINES", "BYTES", "REGISTERED", "CHANGED"), rows, terminal_width()))


@mask.command(name="remove")
@connection_options
@click.argument("org")
@click.argument("name")
def remove_mask(base_url: str, token: str | None, as_json: bool, org: str, name: str) -> None:
    """Forget a value: output to come shows it, what was hidden stays hidden."""
    reply = _ask(base_url, token, "DELETE", _mask_path(org, name))
    if as_json:
        print_json(reply)
    else:
        click.echo(f"{cell(reply['name'])} is hidden no more")


def read_value() -> str:
    """The value, from a prompt on a terminal and else from standard input: a command line is no place for it."""
    if sys.stdin.isatty():
        return str(click.prompt("Value (not shown)", hide_input=True, err=True))
    text = sys.stdin.buffer.read(_MAX_VALUE_BYTES + 1)
    if len(text) > _MAX_VALUE_BYTES:
        raise Refused(f"the value on standard input is longer than {_MAX_VALUE_BYTES} bytes")
    try:
        return text.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise Refused("the value on standard input is no UTF-8 text") from None


# --- requests and values -----------------------------------------------------------------------------------------


def _ask(base_url: str, token: str | None, method: str, path: str, body: Reply | None = None) -> Reply:
    async def ask(http: httpx2.AsyncClient) -> Reply:
        return await call(http, method, path, body)

    role = "read" if method == "GET" else "admin"
    return run_with(base_url, choose_token(token, Audience.ADMIN, role=role), ask)


def _path(org: str) -> str:
    return f"/api/orgs/{quote(org, safe='')}"


def _mask_path(org: str, name: str) -> str:
    return f"{_path(org)}/masks/{quote(name, safe='')}"


def render_limits(limits: dict[str, str | None]) -> Reply:
    """Pure: the request's body from the options that were given."""
    body: Reply = {}
    for name, text in limits.items():
        if text is not None:
            if text != NONE and not (text.isascii() and text.isdigit()):
                raise Refused(f"--{name.removesuffix('_id').replace('_', '-')} {text!r}: give a number, or {NONE}")
            body[name] = None if text == NONE else int(text)
    if not body:
        raise Refused("give a limit: --max-machines, --max-cpus, --runner-group or --weight")
    return body


def render_machine(machine: dict[str, Any]) -> Reply:
    """Pure: the body of a label from its options."""
    body: Reply = {"cpus": machine["cpus"], "mem_mib": parse_mib(machine["memory"])}
    if machine["disk"] is not None:
        body["disk_mib"] = parse_mib(machine["disk"], "--disk")
    return body | {
        name: machine[name] for name in ("arch", "image", "max_machines", "priority") if machine[name] is not None
    }


def describe_machine(label: Reply) -> str:
    """What a label stands for, on one line."""
    size = f"{label['cpus']} CPUs, {label['mem_mib']} MiB of memory, {label['disk_mib']} MiB of disk, {label['arch']}"
    image = "" if label["image"] is None else f", image {cell(label['image'])}"
    most = "" if label["max_machines"] is None else f", at most {label['max_machines']} at once"
    first = f", priority {label['priority']}" if label["priority"] else ""
    return f"{size}{image}{most}{first}"


def row(org: Reply) -> tuple[str, ...]:
    """One line of the list."""
    holds = org["holds"]
    machines = f"{holds['machines']}/{_or_none(org['max_machines'])}"
    cpus = f"{holds['cpus']}/{_or_none(org['max_cpus'])}"
    problem = next((each["means"] for each in select_problems(org)), None)
    numbers = (machines, cpus, str(org["weight"]), str(holds["queued"]))
    return (str(org["org_id"]), cell(org["login"]), *numbers, sentence(problem))


def select_problems(org: Reply) -> list[Reply]:
    """Those that keep jobs waiting first; what keeps us from reading too is told once."""
    told: dict[tuple[object, object], Reply] = {}
    for problem in sorted(org["problems"], key=lambda each: each["task"] == "read"):
        told.setdefault((problem["kind"], problem["repo"]), problem)
    return list(told.values())


def render_org(org: Reply, width: int | None = None) -> str:
    """One organisation on a page."""
    group = org["runner_group_id"]
    lines = [
        ("org", str(org["org_id"])),
        ("machines", _of(org["holds"]["machines"], org["max_machines"])),
        ("CPUs", _of(org["holds"]["cpus"], org["max_cpus"])),
        ("weight", str(org["weight"])),
        ("queued", str(org["holds"]["queued"])),
        ("runner group", "the default" if group is None else str(group)),
    ]
    lines += [
        ("installation", f"{each['installation_id']}{' (suspended)' if each['suspended'] else ''}")
        for each in org["installations"]
    ]
    for problem in select_problems(org):
        name = "problem of polls" if problem["task"] == "read" else "problem"
        lines.append((name, sentence(f"{problem['means']}; GitHub says: {problem['said']}")))
    parts = [render_table((cell(org["login"]), ""), lines, width)]
    if org["labels"]:
        labels = [(cell(each["label"]), describe_machine(each)) for each in org["labels"]]
        parts += ["", render_table(("LABEL", "MACHINE"), labels)]
    return "\n".join(parts)


def _of(held: int, most: int | None) -> str:
    return f"{held}, no limit" if most is None else f"{held} of {most}"


def _or_none(value: int | None) -> str:
    return NONE if value is None else str(value)


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["orgs", *sys.argv[1:]]))
