"""A job that waits because of GitHub says so, names who must act, costs no machine, and runs once they acted.

One control plane, one fake GitHub and one host of the fake VMM for all of it; every case has an organisation of its
own. What a user sees is read from the `nimbus` command.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import pytest

from tests.acceptance.fleet import Agent, Fleet, running_fleet
from tests.acceptance.githubstorm import FASTER, Outside, Planned, Weather, running_world
from tests.acceptance.stack import Json, wait_until
from tests.forge import app_key
from tests.services import PostgresServer, RedisServer, open_schema

pytestmark = [pytest.mark.root, pytest.mark.services]

RETRY_S = 4.0  # before GitHub is asked again about what an owner must end
RESET_S = 5  # of the hourly limit, where it is used up
SETTINGS = {
    **FASTER,
    "NIMBUS_GITHUB_OWNER_RETRY": f"{RETRY_S:g}",
    "NIMBUS_GITHUB_PENALTY": "1",
    "NIMBUS_INSTALLATIONS_INTERVAL": "3",
}
HOST = {
    "NIMBUS_AGENT_CPU_OVERCOMMIT": "16",
    "NIMBUS_AGENT_DISK_OVERCOMMIT": "64",
    "NIMBUS_DISK_RESERVE_MIB": "256",
    "NIMBUS_VM_SLOTS": "64",  # of the whole host, which others may use as well
    "NIMBUS_VM_SHUTDOWN_GRACE": "2",
}


@dataclass
class Scene:
    """All that the cases share."""

    outside: Outside
    fleet: Fleet
    agent: Agent

    def start(self, owner: str, repo: str = "api", label: str = "nimbus") -> int:
        """GitHub's number of a new job; it succeeds once it runs."""
        run = self.outside.start([Planned(owner, repo, (label,), "exit 0")])
        return int(run["jobs"][0]["job_id"])

    def wait_words(self, job_id: int, *words: str) -> None:
        """Until the job says that it waits, in these words."""
        seen: list[object] = []

        def look() -> bool:
            seen[:] = [self.fleet.job(job_id).get("waits_for")]
            return all(word in str(seen[0]) for word in words)

        try:
            wait_until(look, f"job {job_id} waits for {words}")
        except AssertionError as error:
            error.add_note(f"it waits for: {seen}")
            raise

    def show(self, job_id: int) -> tuple[str, Json]:
        """What `nimbus jobs show` says of it, to people and to programs."""
        argv = ("jobs", "show", str(job_id))
        with ThreadPoolExecutor() as pool:
            text, told = pool.map(lambda words: self.fleet.run(*words), [argv, (*argv, "--json")])
        assert (text.returncode, told.returncode) == (0, 0), text.stderr + told.stderr
        return text.stdout, json.loads(told.stdout)

    def check_shown(self, job_id: int, *words: str) -> None:
        """The page and the JSON both say what it waits for."""
        text, told = self.show(job_id)
        on_page = " ".join(text.split())  # however its lines were broken
        assert [word for word in words if word not in on_page or word not in told["waits_for"]] == []
        assert "waits for" in text

    def check_done(self, *job_ids: int) -> None:
        """They run well, and nothing of what they waited for is left to see."""
        for job_id in job_ids:
            job = self.fleet.wait_job(job_id, "completed")
            assert (job["conclusion"], job.get("waits_for")) == ("success", None)
        assert "waits for" not in self.fleet.run("jobs", "show", str(job_ids[0])).stdout

    def limit(self, owner: str, machines: str) -> None:
        """Its organisation may have so many machines."""
        words = ("orgs", "limit", owner, "--max-machines", machines)
        wait_until(lambda: self.fleet.run(*words).returncode == 0, f"{owner} is known")

    def refuse(self, owner: str, repo: str | None, *states: str) -> None:
        """Why GitHub refuses the App, in this repository or in all; for no reason any more where none is named."""
        self.outside.call("POST", "/sim/account", {"owner": owner, "repo": repo, "states": list(states)})

    def strike(self, **rest: object) -> None:
        """GitHub's bad day, for every call; none where nothing is named."""
        self.outside.call("POST", "/sim/faults", {"rest": rest} if rest else {})

    def install(self, owner: str, *, installed: bool) -> None:
        self.outside.call("POST", "/sim/installation", {"owner": owner, "installed": installed})

    @contextmanager
    def held(self, owner: str) -> Iterator[int]:
        """A queued job that no host may take while the block runs."""
        self.limit(owner, "0")
        job_id = self.start(owner)
        self.fleet.wait_job(job_id, "queued")
        yield job_id
        self.limit(owner, "none")

    @contextmanager
    def no_machines(self) -> Iterator[None]:
        """No guest comes up while the block runs."""
        before = self.boots()
        yield
        assert self.boots() == before

    @contextmanager
    def few_machines(self) -> Iterator[None]:
        """At most the one probe, and one more each time that the refusal is asked about again."""
        before, began = self.boots(), time.monotonic()
        yield
        made, took_s = self.boots() - before, time.monotonic() - began
        assert made <= 1 + took_s / RETRY_S

    def boots(self) -> int:
        """How many guests have come up so far."""
        page = httpx2.get(self.agent.page, timeout=30).text
        (count,) = re.findall(r"^nimbus_host_agent_boot_seconds_count (\S+)$", page, flags=re.MULTILINE)
        return int(float(count))


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, shared_redis: RedisServer
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("owner")
    with (
        open_schema(postgres_server) as dsn,
        running_world(folder, Weather("fair", {})) as (outside, settings, port),
        running_fleet(folder, dsn, shared_redis.url, logs=False, port=port, **SETTINGS, **settings) as fleet,
        fleet.agent("owner", "fake", **HOST) as agent,
    ):
        yield Scene(outside, fleet, agent)


@pytest.mark.parametrize(
    ("repo", "state", "words"),
    [
        (None, "ip_allow_list", "an owner of octo-org must add this control plane's address to its IP allow list"),
        ("still", "actions_disabled", "GitHub Actions is disabled for octo-org/still: an administrator of"),
        ("hosted", "runners_disabled", "runners are disabled for octo-org/hosted: an administrator of octo-org must"),
        ("closed", "no_permission", "lacks a permission on octo-org/closed: its administrator must grant it, and an"),
        ("crowded", "group_full", "an owner of octo-org must remove runners from it"),
    ],
    ids=["address-list", "actions", "runners", "permission", "group"],
)
def test_jobs_that_github_refuses_a_runner_name_who_must_act_and_run_once_they_did(
    scene: Scene, repo: str | None, state: str, words: str
) -> None:
    place = ("octo-org", repo or "api")
    scene.refuse("octo-org", repo, state)
    with scene.few_machines():
        first = scene.start(*place)
        scene.wait_words(first, words)
        others = [scene.start(*place) for _ in range(2)]
        for job_id in others:
            scene.wait_words(job_id, words)
        scene.check_shown(first, words)
    scene.refuse("octo-org", repo)
    scene.check_done(first, *others)


def test_jobs_of_a_suspended_installation_say_so_and_run_once_it_is_no_longer(scene: Scene) -> None:
    with scene.held("acme") as job_id:
        scene.refuse("acme", None, "suspended")
        scene.wait_words(job_id, "is suspended: an owner of acme must unsuspend it")
    with scene.no_machines():
        scene.check_shown(job_id, "an owner of acme must unsuspend it")
    scene.refuse("acme", None)
    scene.check_done(job_id)


def test_jobs_of_an_owner_who_removed_the_app_say_so_and_run_once_it_is_there_again(scene: Scene) -> None:
    with scene.held("acme") as job_id:
        scene.install("acme", installed=False)
        scene.wait_words(job_id, "is not installed on acme", "an owner of acme must install it")
    with scene.no_machines():
        scene.check_shown(job_id, "an owner of acme must install it")
    scene.install("acme", installed=True)
    scene.check_done(job_id)


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ({"primary_limit": 1.0, "primary_reset_s": RESET_S}, "GitHub's hourly limit for umbrella is used up"),
        ({"outage": 1.0}, "GitHub does not answer"),
    ],
    ids=["limit", "outage"],
)
def test_jobs_that_wait_for_github_itself_say_that_nobody_must_act(scene: Scene, rest: Json, words: str) -> None:
    scene.strike(**rest)
    job_id = scene.start("umbrella")
    scene.wait_words(job_id, words, "it goes on by itself")
    scene.check_shown(job_id, words)
    scene.strike()
    scene.check_done(job_id)


def test_jobs_that_wait_for_the_apps_key_send_the_operator_to_it(scene: Scene) -> None:
    plane = scene.fleet.plane
    right = plane.env["NIMBUS_GITHUB_APP_PRIVATE_KEY"]
    plane.stop(signal.SIGTERM)
    plane.env["NIMBUS_GITHUB_APP_PRIVATE_KEY"] = app_key.__wrapped__().private_pem
    plane.start()
    with scene.few_machines():
        job_id = scene.start("umbrella")
        scene.wait_words(job_id, "the operator must check NIMBUS_GITHUB_APP_ID and NIMBUS_GITHUB_APP_PRIVATE_KEY")
        scene.check_shown(job_id, "the operator must check NIMBUS_GITHUB_APP_ID")
    plane.stop(signal.SIGTERM)
    plane.env["NIMBUS_GITHUB_APP_PRIVATE_KEY"] = right
    plane.start()
    scene.check_done(job_id)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("nimbus-4cpus", "the author of its workflow, who must change its labels: nimbus-4cpus is no size"),
        ("nimbus-900cpu-8gb", "900 CPUs are more than the"),
        ("nimbus-2cpu-2gb-arm64", "the operator: no host here is arm64"),
    ],
    ids=["misspelt", "too-large", "architecture"],
)
def test_jobs_whose_labels_nobody_serves_say_what_to_do_and_boot_nothing(scene: Scene, label: str, words: str) -> None:
    with scene.no_machines():
        job_id = scene.start("umbrella", label=label)
        scene.wait_words(job_id, words)
        scene.check_shown(job_id, words)


def test_jobs_above_their_organisations_limit_name_it_and_run_once_it_is_raised(scene: Scene) -> None:
    with scene.held("umbrella") as job_id:
        scene.wait_words(job_id, "umbrella may have no machine", "nimbus orgs limit")
        scene.check_shown(job_id, "umbrella may have no machine")
    scene.check_done(job_id)
