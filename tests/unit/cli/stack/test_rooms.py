"""Which process gets which secret, what is asked of the user, and what the secrets' files look like."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from nimbus.cli.stack.credentials import NAMES, ensure_app_key, ensure_secrets, public_half
from nimbus.cli.stack.rooms import Ports, StackPlan, check_state, free_ports, plan_rooms
from nimbus.cli.stack.service import Service
from nimbus.cli.stack.session import StackRuns, hold_state, plan_stack, render_env
from nimbus.model.errors import HostFault, Refused
from nimbus.wire.tokens import Audience, hmac_key, verify_token

PORTS = Ports(8000, 8002, 8080, 9460, 5432, 6379)
DATABASE_URL, REDIS_URL = "postgresql://nimbus:pg@127.0.0.1:5432/nimbus", "redis://:rd@127.0.0.1:6379/0"


def rooms(state: Path, environ: Mapping[str, str] | None = None, *, sim: bool = True) -> dict[str, Service]:
    environ = environ or {}
    plan = StackPlan(state, sim, PORTS, ensure_secrets(state, environ), environ)
    return {service.name: service for service in plan_rooms(plan, DATABASE_URL, REDIS_URL)}


def test_rooms_start_in_the_order_in_which_they_need_each_other(tmp_path: Path) -> None:
    assert list(rooms(tmp_path)) == ["migrate", "control-plane", "logging-pipeline", "sim", "host-agent"]


def test_no_room_holds_a_secret_that_it_does_not_need(tmp_path: Path) -> None:
    secrets = ensure_secrets(tmp_path, {})
    holders = {
        name: {room for room, service in rooms(tmp_path).items() if any(value in v for v in service.env.values())}
        for name, value in {**secrets, "app key": ensure_app_key(tmp_path), "database": DATABASE_URL}.items()
    }
    assert holders == {
        "NIMBUS_JWT_SECRET": {"control-plane", "logging-pipeline"},
        "NIMBUS_AGENT_TOKEN_SECRET": {"control-plane"},
        "NIMBUS_CACHE_SHARED_SECRET": {"control-plane"},
        "NIMBUS_GITHUB_WEBHOOK_SECRET": {"control-plane", "sim"},
        "NIMBUS_METRICS_TOKEN": {"control-plane", "logging-pipeline"},
        "NIMBUS_SIM_CONTROL_TOKEN": {"sim"},
        "STACK_POSTGRES_PASSWORD": set(),
        "STACK_REDIS_PASSWORD": set(),
        "app key": {"control-plane"},
        "database": {"migrate", "control-plane"},
    }


def test_a_user_s_variables_reach_every_room_but_her_secrets_do_not(tmp_path: Path) -> None:
    environ = {
        "NIMBUS_LOG_LEVEL": "DEBUG",
        "NIMBUS_JWT_SECRET": "x" * 40,
        "AWS_SECRET_ACCESS_KEY": "aws",
        "PATH": "/bin",
    }
    planned = rooms(tmp_path, environ)
    assert {service.env["NIMBUS_LOG_LEVEL"] for service in planned.values()} == {"DEBUG"}
    assert planned["control-plane"].env["NIMBUS_JWT_SECRET"] == "x" * 40
    assert "NIMBUS_JWT_SECRET" not in planned["host-agent"].env
    assert all("AWS_SECRET_ACCESS_KEY" not in service.env for service in planned.values())


def test_the_database_of_the_hosts_ledgers_is_the_control_planes_alone(tmp_path: Path) -> None:
    name = "NIMBUS_AGENT_STATE_DATABASE_URL"
    planned = rooms(tmp_path, {name: "postgresql://nimbus:secret@db/mirror"})
    assert [room for room, service in planned.items() if name in service.env] == ["control-plane"]


def test_keys_that_change_reach_those_who_hold_them_and_nobody_else(tmp_path: Path) -> None:
    ways = ("_NEXT", "_PREVIOUS")
    jwt = {f"NIMBUS_JWT_SECRET{way}" for way in ways}
    control = {
        f"NIMBUS_{name}{way}" for name in ("AGENT_TOKEN_SECRET", "CACHE_SHARED_SECRET", "SIGNING_KEY") for way in ways
    }
    control.add("NIMBUS_SIGNING_KEY")
    planned = rooms(tmp_path, {name: f"{name.lower()}-{'x' * 40}" for name in jwt | control})
    held = {room: {name for name in service.env if name in jwt | control} for room, service in planned.items()}
    assert held == {
        "migrate": set(), "control-plane": jwt | control, "logging-pipeline": jwt, "sim": set(), "host-agent": set()
    }  # fmt: skip


def test_the_agent_gets_a_token_that_enrols_it_and_a_door_to_the_sim(tmp_path: Path) -> None:
    agent = rooms(tmp_path)["host-agent"]
    key = hmac_key(ensure_secrets(tmp_path, {})["NIMBUS_AGENT_TOKEN_SECRET"]).verify_key()
    token = agent.env["NIMBUS_CONTROL_PLANE_TOKEN"]
    issued_s = float(os.stat(tmp_path / "secrets.env").st_mtime) + 1
    claims = verify_token(token, [key], audience=Audience.AGENT_ENROLMENT, now_s=issued_s)
    assert claims.subject == agent.env["NIMBUS_AGENT_ID"]
    assert agent.env["NIMBUS_GUEST_PORTS"] == "8080=127.0.0.1:8080"


def test_guest_ports_of_the_user_stand_beside_the_sims(tmp_path: Path) -> None:
    agent = rooms(tmp_path, {"NIMBUS_GUEST_PORTS": "5000=127.0.0.1:5000"})["host-agent"]
    assert agent.env["NIMBUS_GUEST_PORTS"] == "5000=127.0.0.1:5000,8080=127.0.0.1:8080"


def test_without_the_sim_a_github_app_is_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"NIMBUS_GITHUB_APP_ID, NIMBUS_GITHUB_APP_PRIVATE_KEY.*--sim"):
        rooms(tmp_path, sim=False)


def test_secrets_are_made_once_private_and_long(tmp_path: Path) -> None:
    first = ensure_secrets(tmp_path, {})
    assert ensure_secrets(tmp_path, {}) == first
    assert set(first) == set(NAMES)
    assert len(set(first.values())) == len(NAMES)
    assert min(map(len, first.values())) >= 32
    assert stat.S_IMODE((tmp_path / "secrets.env").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secrets.env"]


def test_a_secret_of_the_environment_wins_and_is_not_written_down(tmp_path: Path) -> None:
    mine = "mine" * 10
    assert ensure_secrets(tmp_path, {"NIMBUS_JWT_SECRET": mine})["NIMBUS_JWT_SECRET"] == mine
    assert mine not in (tmp_path / "secrets.env").read_text()


def test_a_cut_off_secret_is_refused_by_the_file_s_name(tmp_path: Path) -> None:
    (tmp_path / "secrets.env").write_text("NIMBUS_JWT_SECRET=short\n")
    with pytest.raises(HostFault, match=r"secrets\.env"):
        ensure_secrets(tmp_path, {})


def test_the_fake_github_knows_the_public_half_only(tmp_path: Path) -> None:
    private = ensure_app_key(tmp_path)
    assert ensure_app_key(tmp_path) == private
    assert public_half(private).startswith("-----BEGIN PUBLIC KEY-----")
    assert stat.S_IMODE((tmp_path / "github-app.pem").stat().st_mode) == 0o600


def test_one_stack_for_each_state_folder(tmp_path: Path) -> None:
    with hold_state(tmp_path / "a"), hold_state(tmp_path / "b"):
        with pytest.raises(StackRuns, match="already runs") as caught, hold_state(tmp_path / "a"):
            raise AssertionError("the lock was given twice")
        assert caught.value.exit_code == 75
    with hold_state(tmp_path / "a"):
        pass


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostFault, match="--state"):
        check_state(tmp_path / "file" / "state")


def test_the_env_file_names_what_the_commands_read(tmp_path: Path) -> None:
    text = render_env(plan_stack(tmp_path, free_ports(), {}, sim=True))
    names = {line.partition("=")[0] for line in text.splitlines()}
    assert {"NIMBUS_CONTROL_PLANE_URL", "NIMBUS_LOGS_URL", "NIMBUS_JWT_SECRET", "NIMBUS_STATE_DIR"} <= names
    assert "NIMBUS_DATABASE_URL" not in names
