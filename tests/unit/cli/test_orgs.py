"""`nimbus orgs`: what an operator types, against a real control plane."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import trio

from nimbus.cli.orgs import render_limits, render_machine, render_org, row
from nimbus.cli.tables import render_table
from nimbus.control_plane.demand.admission import admit_due
from nimbus.control_plane.orgs.masks import read_masks
from nimbus.model.errors import Refused
from tests.unit.cli.test_jobs import Said, nimbus_cli
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.plane import ADMIN_SECRET

ORG: dict[str, Any] = {
    "org_id": 2, "login": "octo-org", "max_machines": 5, "max_cpus": None, "runner_group_id": None, "weight": 100,
    "holds": {"machines": 1, "cpus": 4, "queued": 7}, "installations": [{"installation_id": 77, "suspended": True}],
    "problems": [
        {"kind": "suspended", "repo": None, "task": "read", "means": "polls wait", "said": "the same"},
        {"kind": "group_full", "repo": "api", "task": "read", "means": "polls wait for api", "said": "no"},
        {"kind": "suspended", "repo": None, "task": "any", "means": "an owner must act", "said": "their \x1b[2Jwords"},
    ],
    "labels": [
        {
            "label": "big", "cpus": 4, "mem_mib": 8192, "disk_mib": 2048, "arch": "x64", "image": None,
            "max_machines": 2, "priority": 5,
        }
    ],
}  # fmt: skip


async def orgs(github: GithubPlane, *words: str) -> Said:
    def run() -> Said:
        return nimbus_cli("orgs", *words, NIMBUS_CONTROL_PLANE_URL=github.plane.url, NIMBUS_JWT_SECRET=ADMIN_SECRET)

    return await trio.to_thread.run_sync(run)


@pytest.mark.services
async def test_an_operator_limits_an_org_and_gives_it_a_label(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        await github.tell("queued", labels=["nimbus-big"])
        limited = await orgs(github, "limit", "octo-org", "--max-machines", "3", "--max-cpus", "none", "--weight", "50")
        told = "octo-org: max_machines 3, max_cpus none, runner_group_id none, weight 50\n"
        assert (limited.status, limited.out) == (0, told)
        told = (await orgs(github, "label", "set", "octo-org", "nimbus-big", "--cpus", "2", "--memory", "4G")).out
        assert told == "runs-on: nimbus-big is 2 CPUs, 4096 MiB of memory, 2048 MiB of disk, x64\n"
        await admit_due(github.plane.services, github.forge.demand)
        assert await github.states() == ["queued"]
        shown = json.loads((await orgs(github, "show", "octo-org", "--json")).out)
        assert (shown["max_machines"], [each["label"] for each in shown["labels"]]) == (3, ["nimbus-big"])
        assert "octo-org  0/3       0/none  50      1" in (await orgs(github, "list")).out
        assert (await orgs(github, "label", "remove", "octo-org", "nimbus-big")).status == 0
        unknown = await orgs(github, "show", "nobody")
        assert (unknown.status, unknown.out) == (2, "")
        assert "there is no org nobody" in unknown.err


def test_limits_are_numbers_or_none_and_at_least_one_is_given() -> None:
    given = {"max_machines": "3", "max_cpus": "none", "runner_group_id": None}
    assert render_limits(given) == {"max_machines": 3, "max_cpus": None}
    for wrong in ("many", "-1", None):
        with pytest.raises(Refused):
            render_limits({"max_cpus": wrong})


def test_a_labels_machine_leaves_out_what_was_not_said() -> None:
    said = {"cpus": 2, "memory": "2G", "disk": None, "arch": None, "image": None, "max_machines": 0, "priority": -5}
    assert render_machine(said) == {"cpus": 2, "mem_mib": 2048, "max_machines": 0, "priority": -5}
    with pytest.raises(Refused, match="--disk"):
        render_machine(said | {"disk": "large"})


def test_the_page_of_an_org_shows_who_must_act_and_nothing_that_drives_the_terminal() -> None:
    page = render_org(ORG)
    assert "1 of 5" in page
    assert "77 (suspended)" in page
    assert "4, no limit" in page
    assert "problem           an owner must act; GitHub says: their" in page
    assert "problem of polls  polls wait for api; GitHub says: no" in page
    assert "polls wait;" not in page
    assert "4 CPUs, 8192 MiB of memory, 2048 MiB of disk, x64, at most 2 at once, priority 5" in page
    assert "\x1b" not in page
    assert row(ORG) == ("2", "octo-org", "1/5", "4/none", "100", "7", "an owner must act")


def test_a_terminal_breaks_a_long_sentence_below_its_own_column() -> None:
    lines = [("problem", "an owner of octo-org must unsuspend it, or nothing runs")]
    told = render_table(("octo-org", ""), lines, width=50).splitlines()
    assert told == ["octo-org", "problem   an owner of octo-org must unsuspend it,", "          or nothing runs"]
    address = "https://github.example/octo-org/" + "a" * 60
    assert address in render_table(("octo-org", ""), [("on GitHub", f"see {address}")], width=50)
    assert render_table(("octo-org", ""), lines).count("\n") == 1
    assert render_table(("octo-org", ""), lines, width=30).count("\n") == 1


# --- masks ------------------------------------------------------------------------------------------------------------

VALUE = "correct-horse-battery-staple"


def add_mask(url: str, name: str, value: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "nimbus", "orgs", "mask", "add", "octo-org", name, *words]
    env = {**os.environ, "NIMBUS_CONTROL_PLANE_URL": url, "NIMBUS_JWT_SECRET": ADMIN_SECRET}
    return subprocess.run(argv, input=value, env=env, capture_output=True, check=False)


@pytest.mark.services
async def test_a_value_comes_from_standard_input_and_is_never_shown(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        await github.tell("queued")
        lines = f"{VALUE}\nand a second line\n".encode()
        added = await trio.to_thread.run_sync(add_mask, github.plane.url, "deploy-key", lines)
        listed = await orgs(github, "mask", "list", "octo-org")
        told = await orgs(github, "mask", "list", "octo-org", "--json")
        [row] = await github.plane.sql("SELECT org_id FROM orgs WHERE login = 'octo-org'")
        kept = await read_masks(github.plane.services, row["org_id"])
        removed = await orgs(github, "mask", "remove", "octo-org", "deploy-key")
        again = await orgs(github, "mask", "remove", "octo-org", "deploy-key")

    assert added.stdout == b"deploy-key is hidden from now on: 2 lines, 46 bytes\n"
    assert kept == [f"{VALUE}\nand a second line"]
    assert listed.out.splitlines()[0].split() == ["NAME", "LINES", "BYTES", "REGISTERED", "CHANGED"]
    assert [mask["name"] for mask in json.loads(told.out)["masks"]] == ["deploy-key"]
    assert VALUE not in listed.out + told.out + added.stderr.decode()
    assert (removed.status, removed.out) == (0, "deploy-key is hidden no more\n")
    assert (again.status, again.out) == (2, "")


@pytest.mark.parametrize("value", [b"x" * 100_000, b"caf\xe9-is-no-utf-8"])
def test_a_value_that_no_request_can_carry_is_refused_without_a_word_of_it(value: bytes) -> None:
    refused = add_mask("http://127.0.0.1:9", "key", value)
    assert refused.returncode == 2
    assert b"standard input" in refused.stderr
    assert value[:6] not in refused.stderr
