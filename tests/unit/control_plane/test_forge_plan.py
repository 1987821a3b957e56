"""What the operator sets of GitHub reaches the client, and is counted where operators look."""

from __future__ import annotations

import pytest
import trio
from pydantic import ValidationError

from nimbus.control_plane.app import plan_leases
from nimbus.control_plane.demand.inbox import InboxRules
from nimbus.control_plane.forge import open_forge, plan_demand, plan_inbox, plan_limits
from nimbus.control_plane.github.client import RunnerScope
from nimbus.control_plane.github.limits import LimitTerms
from nimbus.control_plane.metrics import Metrics
from nimbus.control_plane.services import LeaseTerms
from nimbus.control_plane.settings import Settings
from nimbus.model.forge import ForgeTrouble
from tests.forge import APP_ID, INSTALLATION_ID, app_key
from tests.unit.control_plane.github_server import Reply, open_github_server

REQUIRED = {
    "NIMBUS_DATABASE_URL": "postgresql://nimbus@127.0.0.1/nimbus",
    "NIMBUS_GITHUB_APP_ID": APP_ID,
    "NIMBUS_GITHUB_WEBHOOK_SECRET": "w" * 32,
    "NIMBUS_REDIS_URL": "redis://127.0.0.1:1/0",
    "NIMBUS_JWT_SECRET": "j" * 32,
    "NIMBUS_PUBLIC_BASE_URL": "http://127.0.0.1:8000",
    "NIMBUS_CACHE_SHARED_SECRET": "c" * 32,
    "NIMBUS_AGENT_TOKEN_SECRET": "a" * 32,
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    # as environment files write it
    monkeypatch.setenv("NIMBUS_GITHUB_APP_PRIVATE_KEY", app_key().private_pem.replace("\n", "\\n"))
    return monkeypatch


def test_limits_are_githubs_unless_the_operator_says_otherwise(environment: pytest.MonkeyPatch) -> None:
    assert plan_limits(Settings()) == LimitTerms()
    environment.setenv("NIMBUS_GITHUB_CONCURRENCY", "7")
    environment.setenv("NIMBUS_GITHUB_WRITE_POINTS", "100")
    environment.setenv("NIMBUS_GITHUB_RESERVE", "0.5")
    environment.setenv("NIMBUS_GITHUB_OWNER_RETRY", "5")
    environment.setenv("NIMBUS_GITHUB_PENALTY", "1")
    assert plan_limits(Settings()) == LimitTerms(7, 100, 0.5, LimitTerms().patience_s, 5.0, 1.0)


def test_intervals_are_what_they_were_unless_the_operator_says_otherwise(environment: pytest.MonkeyPatch) -> None:
    assert (plan_inbox(Settings()), plan_leases(Settings())) == (InboxRules(), LeaseTerms())
    environment.setenv("NIMBUS_DELIVERY_RETENTION", "300000")
    environment.setenv("NIMBUS_INBOX_LOOK_INTERVAL", "0.1")
    environment.setenv("NIMBUS_INBOX_CLAIM", "16")
    environment.setenv("NIMBUS_INBOX_RETRY", "0.2")
    environment.setenv("NIMBUS_INBOX_SWEEP_INTERVAL", "0.3")
    environment.setenv("NIMBUS_LEASE_SWEEP_INTERVAL", "0.4")
    environment.setenv("NIMBUS_POLL_INTERVAL", "5")
    environment.setenv("NIMBUS_REDELIVERY_INTERVAL", "2")
    environment.setenv("NIMBUS_REPAIR_TAKES", "0.5")
    settings = Settings()
    assert plan_inbox(settings) == InboxRules(300000, look_s=0.1, claim_s=16, retry_s=0.2, sweep_s=0.3)
    assert plan_leases(settings).sweep_s == 0.4
    assert plan_demand(settings).untold_s == 5.5


def test_a_delivery_is_not_let_go_while_a_transaction_may_still_work_on_it(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("NIMBUS_INBOX_CLAIM", "15")
    with pytest.raises(ValidationError, match="inbox_claim"):
        Settings()


async def test_calls_to_github_are_counted_by_route_status_and_kind_of_refusal(
    environment: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics()
    async with open_github_server() as server:
        environment.setenv("NIMBUS_GITHUB_API_URL", server.url)
        environment.setenv("NIMBUS_GITHUB_OWNER_RETRY", "5")
        path = "/repos/octo-org/hello/actions/runners"
        server.on("GET", path, Reply(403, {"message": "Resource not accessible by integration"}))
        async with open_forge(Settings(), metrics.github) as forge:
            with trio.fail_after(30), pytest.raises(ForgeTrouble) as caught:
                await forge.github.list_runners(RunnerScope(INSTALLATION_ID, "octo-org", "hello"))
    assert caught.value.retry_after_s == 5.0
    page = metrics.render().decode()
    for line in (
        'nimbus_control_plane_github_calls_total{route="access_tokens",status="201"} 1.0',
        'nimbus_control_plane_github_calls_total{route="runners",status="403"} 1.0',
        'nimbus_control_plane_github_refusals_total{kind="no_permission"} 1.0',
        "nimbus_control_plane_github_away 0.0",
    ):
        assert line in page
    assert 'nimbus_control_plane_github_wait_seconds_total{purpose="repair"}' in page
