"""The stack as a list of services: which process gets which variables and which secret. Starts nothing.

Each room gets what it needs and no more: the agent holds neither a database's password nor GitHub's secrets.
Called by `nimbus up` and `nimbus demo`.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import close
from pathlib import Path

from nimbus.cli.stack import postgres, redis
from nimbus.cli.stack.credentials import NAMES, ensure_app_key, public_half
from nimbus.cli.stack.service import LOOPBACK, Probe, Service, answers_http, free_port, port_is_free
from nimbus.model.errors import HostFault, Refused
from nimbus.wire.tokens import Audience, hmac_key, render_token

GUEST_GATEWAY = "172.16.0.1"  # the host, as every guest sees it
SIM_GUEST_PORT = 8080  # where guests reach the fake GitHub, whatever port it has on the host
AGENT_ID = "agent-local"
ENROLMENT_TTL_S = 365 * 86400.0  # an agent enrols again with it after each restart of the stack's parts
AGENT_STOP_S = 60.0  # it tears down every VM first
IMAGE = "base"
SIM_APP_ID = "1"
# What every room may see of our environment beside NIMBUS_* variables.
_CARRIED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONWARNINGS")
_GITHUB = ("NIMBUS_GITHUB_APP_ID", "NIMBUS_GITHUB_APP_PRIVATE_KEY", "NIMBUS_GITHUB_WEBHOOK_SECRET")
# While a key changes there are up to three of it, each in a variable; what is set is passed to whoever holds the first.
_JWT_BESIDE = ("NIMBUS_JWT_SECRET_NEXT", "NIMBUS_JWT_SECRET_PREVIOUS")
_KEYS_BESIDE = (
    *_JWT_BESIDE,
    *(
        f"{name}{way}"
        for name in ("NIMBUS_AGENT_TOKEN_SECRET", "NIMBUS_CACHE_SHARED_SECRET")
        for way in ("_NEXT", "_PREVIOUS")
    ),
    *(f"NIMBUS_SIGNING_KEY{way}" for way in ("", "_NEXT", "_PREVIOUS")),
)
_SECRET_VARIABLES = frozenset(
    {*NAMES, *_GITHUB, *_KEYS_BESIDE, "NIMBUS_DATABASE_URL", "NIMBUS_REDIS_URL", "NIMBUS_CONTROL_PLANE_TOKEN"}
    | {"NIMBUS_CLICKHOUSE_PASSWORD", "NIMBUS_AGENT_STATE_DATABASE_URL", "NIMBUS_AGENT_REDIS_URL"}
)


@dataclass(frozen=True)
class Ports:
    """Loopback ports of one stack."""

    control_plane: int
    logging: int
    sim: int
    agent_metrics: int
    postgres: int
    redis: int


@dataclass(frozen=True)
class StackPlan:
    """What one stack is made of."""

    state: Path
    sim: bool
    ports: Ports
    secrets: Mapping[str, str] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)  # ours: carries what the user set

    @property
    def control_plane_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.control_plane}"

    @property
    def logs_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.logging}"

    @property
    def sim_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.sim}"


def documented_ports() -> Ports:
    """The ports of the documents where they are free; Refused, by name, where they are not."""
    ports = Ports(8000, 8002, 8080, 9460, free_port(), free_port())
    named = {"control plane": ports.control_plane, "logs": ports.logging, "sim": ports.sim}
    for name, port in (named | {"agent metrics": ports.agent_metrics}).items():
        if not port_is_free(port):
            raise Refused(f"port {port} ({name}) is taken by another program: stop it, or use --free-ports")
    return ports


def free_ports() -> Ports:
    """Ports that nobody has, for a stack beside others."""
    return Ports(*(free_port() for _ in range(6)))


@contextmanager
def open_services(plan: StackPlan) -> Iterator[list[Service]]:
    """All services in the order of their start. Blocking: it makes the database's folder the first time."""
    environ, secrets = plan.environ, plan.secrets
    database_url, redis_url = environ.get("NIMBUS_DATABASE_URL"), environ.get("NIMBUS_REDIS_URL")
    services: list[Service] = []
    cluster = None
    if not database_url:
        password = secrets["STACK_POSTGRES_PASSWORD"]
        cluster = postgres.open_cluster(plan.state / "postgres", password)
        services.append(postgres.plan_server(cluster, plan.ports.postgres))
        database_url = postgres.render_dsn(password, plan.ports.postgres)
    if not redis_url:
        password = secrets["STACK_REDIS_PASSWORD"]
        services.append(redis.plan_server(plan.ports.redis, password))
        redis_url = redis.render_url(password, plan.ports.redis)
    try:
        yield services + plan_rooms(plan, database_url, redis_url)
    finally:
        if cluster is not None:
            close(cluster.folder_fd)


def plan_rooms(plan: StackPlan, database_url: str, redis_url: str) -> list[Service]:
    """The processes of Nimbus itself, in the order of their start. The sim comes before who calls it."""
    github = _sim_github(plan) if plan.sim else _real_github(plan)
    control = {**github, "NIMBUS_DATABASE_URL": database_url, "NIMBUS_REDIS_URL": redis_url}
    migrate = _module(plan, "nimbus.control_plane.migrate", {"NIMBUS_DATABASE_URL": database_url})
    rooms = [
        Service("migrate", *migrate, None, once=True),
        _control_plane(plan, control),
        _logging_pipeline(plan),
    ]
    if plan.sim:
        rooms.append(_sim(plan, github["NIMBUS_GITHUB_APP_PRIVATE_KEY"]))
    return [*rooms, _agent(plan)]


def _control_plane(plan: StackPlan, own: Mapping[str, str]) -> Service:
    secrets = plan.secrets
    env = {
        **own,
        "NIMBUS_JWT_SECRET": secrets["NIMBUS_JWT_SECRET"],
        "NIMBUS_AGENT_TOKEN_SECRET": secrets["NIMBUS_AGENT_TOKEN_SECRET"],
        "NIMBUS_CACHE_SHARED_SECRET": secrets["NIMBUS_CACHE_SHARED_SECRET"],
        "NIMBUS_METRICS_TOKEN": secrets["NIMBUS_METRICS_TOKEN"],
        "NIMBUS_PUBLIC_BASE_URL": plan.control_plane_url,
        "NIMBUS_CONTROL_PLANE_BIND": f"{LOOPBACK}:{plan.ports.control_plane}",
        "NIMBUS_LOG_PUBLIC_URL": plan.logs_url,
        "NIMBUS_DEFAULT_IMAGE": IMAGE,
        **_pick(plan.environ, (*_KEYS_BESIDE, "NIMBUS_AGENT_STATE_DATABASE_URL")),
    }
    return _room(plan, "control-plane", "nimbus.control_plane.main", env, plan.ports.control_plane, "/readyz")


def _logging_pipeline(plan: StackPlan) -> Service:
    env = {
        "NIMBUS_JWT_SECRET": plan.secrets["NIMBUS_JWT_SECRET"],
        "NIMBUS_METRICS_TOKEN": plan.secrets["NIMBUS_METRICS_TOKEN"],
        "NIMBUS_CONTROL_PLANE_URL": plan.control_plane_url,
        "NIMBUS_JWKS_URL": f"{plan.control_plane_url}/.well-known/jwks.json",
        "NIMBUS_LOGGING_BIND": f"{LOOPBACK}:{plan.ports.logging}",
        "NIMBUS_STATE_DIR": str(plan.state),
        **_pick(plan.environ, _JWT_BESIDE),
    }
    if "NIMBUS_CLICKHOUSE_PASSWORD" in plan.environ:
        env["NIMBUS_CLICKHOUSE_PASSWORD"] = plan.environ["NIMBUS_CLICKHOUSE_PASSWORD"]
    return _room(plan, "logging-pipeline", "nimbus.logging_pipeline.main", env, plan.ports.logging, "/readyz")


def _sim(plan: StackPlan, private_pem: str) -> Service:
    env = {
        "NIMBUS_SIM_BIND": f"{LOOPBACK}:{plan.ports.sim}",
        "NIMBUS_SIM_PUBLIC_URL": f"http://{GUEST_GATEWAY}:{SIM_GUEST_PORT}",
        "NIMBUS_SIM_WEBHOOK_URL": f"{plan.control_plane_url}/webhooks/github",
        "NIMBUS_SIM_WEBHOOK_SECRET": plan.secrets["NIMBUS_GITHUB_WEBHOOK_SECRET"],
        "NIMBUS_SIM_APP_ID": SIM_APP_ID,
        "NIMBUS_SIM_APP_PUBLIC_KEY": public_half(private_pem),
        "NIMBUS_SIM_CONTROL_TOKEN": plan.secrets["NIMBUS_SIM_CONTROL_TOKEN"],
        "NIMBUS_SIM_STATE_DIR": str(plan.state / "sim"),
    }
    return _room(plan, "sim", "nimbus.sim.main", env, plan.ports.sim, "/healthz")


def _agent(plan: StackPlan) -> Service:
    key = hmac_key(plan.secrets["NIMBUS_AGENT_TOKEN_SECRET"])
    agent_id = plan.environ.get("NIMBUS_AGENT_ID") or AGENT_ID
    token = render_token(
        key, subject=agent_id, audience=Audience.AGENT_ENROLMENT, now_s=time.time(), ttl_s=ENROLMENT_TTL_S
    )
    env = {
        "NIMBUS_AGENT_ID": agent_id,
        "NIMBUS_CONTROL_PLANE_URL": plan.control_plane_url,
        "NIMBUS_CONTROL_PLANE_TOKEN": token,
        "NIMBUS_STATE_DIR": str(plan.state),
        "NIMBUS_AGENT_METRICS_PORT": str(plan.ports.agent_metrics),
    }
    if plan.sim:
        sim_port = f"{SIM_GUEST_PORT}={LOOPBACK}:{plan.ports.sim}"
        env["NIMBUS_GUEST_PORTS"] = ",".join(filter(None, (plan.environ.get("NIMBUS_GUEST_PORTS"), sim_port)))
    argv, environment = _module(plan, "nimbus.host_agent.main", env)
    return Service(
        name="host-agent",
        argv=argv,
        env=environment,
        ready=answers_http(plan.ports.agent_metrics, "/metrics/"),
        stop_signal=signal.SIGINT,  # tear every VM down; SIGTERM is for an upgrade, where VMs may live on
        stop_s=AGENT_STOP_S,
        ports={"agent-metrics": plan.ports.agent_metrics},
    )


def _pick(environ: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: environ[name] for name in names if environ.get(name)}


def _sim_github(plan: StackPlan) -> dict[str, str]:
    return {
        "NIMBUS_GITHUB_APP_ID": SIM_APP_ID,
        "NIMBUS_GITHUB_APP_PRIVATE_KEY": ensure_app_key(plan.state),
        "NIMBUS_GITHUB_WEBHOOK_SECRET": plan.secrets["NIMBUS_GITHUB_WEBHOOK_SECRET"],
        "NIMBUS_GITHUB_API_URL": plan.sim_url,
    }


def _real_github(plan: StackPlan) -> dict[str, str]:
    missing = [name for name in _GITHUB if not plan.environ.get(name)]
    if missing:
        raise Refused(f"without --sim a GitHub App is needed: set {', '.join(missing)}; or rehearse with --sim")
    return {name: plan.environ[name] for name in _GITHUB}


def _room(plan: StackPlan, name: str, module: str, env: Mapping[str, str], port: int, health: str) -> Service:
    ready: Probe = answers_http(port, health)
    return Service(name, *_module(plan, module, env), ready, ports={name: port})


def _module(plan: StackPlan, module: str, own: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """argv and environment of `python -m module`: what the user set for everybody, then what this room needs."""
    environ = plan.environ
    env = {name: environ[name] for name in _CARRIED if name in environ}
    shared = (name for name in environ if name.startswith("NIMBUS_") and name not in _SECRET_VARIABLES)
    env |= {name: environ[name] for name in shared}
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", **own}
    return (sys.executable, "-m", module), env


def check_state(state: Path) -> Path:
    """The state folder, made and absolute; HostFault where it cannot be used."""
    try:
        state = state.absolute()
        state.mkdir(parents=True, exist_ok=True, mode=0o711)
    except OSError as error:
        raise HostFault(
            f"the state folder {state} cannot be made: {error.strerror}; choose one with --state"
        ) from error
    return state
