"""What every room's settings share: DSN spellings, secrets with a length, unknown variables, a clear refusal.

Never holds a room's own variables (those are in ROOM/settings.py). Called once, by each room's `main`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, NoReturn, TypeVar

from pydantic import AfterValidator, SecretStr, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from nimbus.runtime.proxies import parse_networks
from nimbus.wire.tokens import MIN_SECRET_BYTES

PREFIX = "NIMBUS_"
# Every variable that some part of Nimbus reads, beside the calling room's own: one environment serves them all.
# A name that is missing here is only ever reported, never refused.
_DOCUMENTED = """
    ACCEL ADMIN_ALLOWED_SUBJECTS ADMIN_SUBJECT AGENT_HEARTBEAT_INTERVAL AGENT_MIN_VERSION AGENT_CPU_OVERCOMMIT
    AGENT_DISK_OVERCOMMIT AGENT_ID AGENT_LEASE_RETRIES
    AGENT_LEASE_RETRY_BASE AGENT_LEASE_RETRY_MAX AGENT_METRICS_HOST AGENT_METRICS_PORT AGENT_REDIS_URL
    AGENT_STATE_DATABASE_URL AGENT_TOKEN_RATE_INTERVAL AGENT_TOKEN_RATE_LIMIT AGENT_TOKEN_SECRET AGENT_TOKEN_TTL
    CACHE_EVICTION_BATCH CACHE_MAX_BYTES CACHE_METRICS_DB CACHE_PROXY_URL CACHE_S3_BUCKET CACHE_S3_CIRCUIT_FAILURES
    CACHE_S3_CIRCUIT_RESET CACHE_S3_ENDPOINT CACHE_S3_MAX_RETRIES CACHE_S3_REGION CACHE_S3_RETRY_BASE
    CACHE_S3_RETRY_MAX CACHE_SHARED_SECRET CACHE_STORAGE_PATH CACHE_TOKEN_SECRET CACHE_TOKEN_TTL CACHE_TOKEN_VALUE
    CLICKHOUSE_DATABASE CLICKHOUSE_PASSWORD CLICKHOUSE_TABLE CLICKHOUSE_TIMEOUT CLICKHOUSE_URL CLICKHOUSE_USERNAME
    CONTROL_PLANE_BIND CONTROL_PLANE_TOKEN CONTROL_PLANE_URL CPU_PINNING DATABASE_POOL_SIZE DATABASE_URL DEFAULT_IMAGE
    INBOX_CLAIM INBOX_LOOK_INTERVAL INBOX_RETRY INBOX_SWEEP_INTERVAL LEASE_SWEEP_INTERVAL REPAIR_TAKES
    RATE_LIMIT_WITHOUT_REDIS
    DELIVERY_RETENTION DEMAND_INTERVAL DEMAND_PAUSE DISK_RESERVE_MIB DUTY_TTL
    INSTALLATIONS_INTERVAL POLL_IDLE_AFTER POLL_IDLE_INTERVAL POLL_INTERVAL REDELIVERY_INTERVAL REDELIVERY_WINDOW
    DOCKER_CACHE_DB_PATH DOCKER_CACHE_MAX_BYTES DOCKER_CACHE_STORAGE_PATH DOCKER_CACHE_UPLOAD_PATH
    FC_BIN GITHUB_API_URL GITHUB_APP_ID GITHUB_APP_INSTALLATION_ID GITHUB_APP_PRIVATE_KEY GITHUB_CONCURRENCY
    GITHUB_OWNER_RETRY GITHUB_PENALTY GITHUB_RESERVE GITHUB_WEBHOOK_SECRET GITHUB_WRITE_POINTS
    GITHUB_WEBHOOK_SECRET_PREVIOUS GUEST_NAMESERVER GUEST_PORTS HOST_ACT_LIMIT HOUSEKEEPING_CPUS JAILER_BIN
    JAILER_CHROOT_BASE JAILER_GID JAILER_UID JOB_IN_PROGRESS_LEASE_TTL JOB_LABELS JOB_LEASE_TTL JOB_MAX_ATTEMPTS
    LEASE_LOOK_INTERVAL WAKE_PATIENCE
    LABEL_MAX_CPUS LABEL_MAX_DISK_GB LABEL_MAX_MEMORY_GB STOLEN_LIMIT PRIORITY_AGING STARVATION_AFTER
    JOB_TIMEOUT JWKS_URL JWT_SECRET KERNEL_IMAGE LOGGING_BIND LOGGING_RETENTION_DAYS
    LOGGING_QUERY_MEMORY_MIB LOGGING_QUERY_ORG_LIMIT LOGGING_QUERY_ROWS LOGGING_QUERY_SECONDS
    LOGS_URL LOG_LEVEL LOG_PUBLIC_URL
    LOG_SINK_URL LOG_SPOOL_MIB METRICS_TOKEN ORG_JOB_RATE_LIMIT ORG_RATE_INTERVAL OTEL_EXPORTER_ENDPOINT
    OTEL_EXPORTER_HEADERS OTEL_SAMPLER_RATIO POOL POOL_IMAGE POOL_TTL PUBLIC_BASE_URL REDIS_URL REQUIRE_LIMITS
    GITHUB_URL RUNNER_COMMAND RUNNER_END_LIMIT RUNNER_GROUP_ID RUNNER_IDLE_LIMIT RUNNER_REGISTRATION
    RUNNER_SWEEP_INTERVAL RUNNER_ZOMBIE_AGE
    ROOTFS_IMAGE RUNNER_LEVEL RUNTIME_DIR SECCOMP_FILTER SIGNING_KEY SIM_ACCEPT_WITHIN_S SIM_APP_ID SIM_APP_PUBLIC_KEY
    SIM_BIND SIM_CONTROL_TOKEN SIM_INSTALLATION_ID SIM_OWNER SIM_OWNERS SIM_PUBLIC_URL SIM_RATE_LIMIT SIM_REPO
    SIM_RUNNER_LOST_AFTER_S SIM_RUNNER_RETURN_WITHIN_S SIM_STATE_DIR SIM_URL SIM_WEBHOOK_SECRET SIM_WEBHOOK_URL
    SNAPSHOT_BOOT STATE_DIR TAP_PREFIX TRUSTED_PROXIES VMM VM_IO_BPS VM_IO_IOPS VM_SHUTDOWN_GRACE VM_SLOTS VM_SUBNET
    SIM_DELIVERY_WINDOW_S SIM_FAULTS SIM_RUNNER_IDLE_S WEBHOOK_TIMESTAMP_REQUIRED WEBHOOK_TIMESTAMP_TOLERANCE
    JWT_SECRET_NEXT JWT_SECRET_PREVIOUS AGENT_TOKEN_SECRET_NEXT AGENT_TOKEN_SECRET_PREVIOUS CACHE_SHARED_SECRET_NEXT
    CACHE_SHARED_SECRET_PREVIOUS SIGNING_KEY_NEXT SIGNING_KEY_PREVIOUS JWKS_MAX_AGE KEY_PUBLISH_LEAD
    KEY_REFRESH_INTERVAL KEY_ROTATION_INTERVAL
    LOGGING_TAIL_HEARTBEAT LOGGING_TAIL_LIMIT LOGGING_TAIL_ORG_LIMIT LOGGING_TAIL_QUEUE_KIB LOGGING_TAIL_QUEUE_ROWS
    LOGGING_REVOCATION_INTERVAL LOGGING_MASK_PATIENCE LOGGING_MASK_REFRESH LOGGING_INTAKE_MIB LOGGING_MACHINE_INTAKE_MIB
"""
DOCUMENTED_VARIABLES = frozenset(f"{PREFIX}{name}" for name in _DOCUMENTED.split())
_PREFIXES_OF_ROOMS = ("NIMBUS_SIM_", "NIMBUS_LOGGING_", "NIMBUS_AGENT_")
_POSTGRES_SCHEMES = frozenset(
    {"postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"}
)


def normalise_dsn(dsn: str) -> str:
    """The plain `postgresql://` form of every spelling that the documents use."""
    scheme, separator, rest = dsn.partition("://")
    if scheme not in _POSTGRES_SCHEMES or not separator:
        raise ValueError("a PostgreSQL address is needed: postgresql://user:password@host/database")
    return f"postgresql://{rest}"


def _check_dsn(dsn: SecretStr) -> SecretStr:
    return SecretStr(normalise_dsn(dsn.get_secret_value()))


def _check_signing_secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"needs at least {MIN_SECRET_BYTES} bytes: openssl rand -hex 32 makes one")
    return secret


PostgresDsn = Annotated[SecretStr, AfterValidator(_check_dsn)]  # secret: it holds a password
SigningSecret = Annotated[SecretStr, AfterValidator(_check_signing_secret)]


@dataclass(frozen=True)
class SharedSecret:
    """A secret that several parties hold, while it changes: one signs, the others are accepted beside it."""

    variable: str
    current: str = field(repr=False)
    next: str | None = field(default=None, repr=False)
    previous: str | None = field(default=None, repr=False)

    @property
    def accepted(self) -> tuple[str, ...]:
        """All that are set; the first signs."""
        return tuple(secret for secret in (self.current, self.next, self.previous) if secret is not None)


def read_shared(room: RoomSettings, name: str) -> SharedSecret:
    """The secret of this field and the two beside it."""
    values = [getattr(room, f"{name}{suffix}") for suffix in ("", "_next", "_previous")]
    current, coming, gone = (None if value is None else value.get_secret_value() for value in values)
    return SharedSecret(f"{PREFIX}{name}".upper(), current or "", coming, gone)


def refuse_repeated(secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """A validator of shared secrets: each is one of its own, or whoever holds one would hold two."""
    for name, other in info.data.items():
        is_secret = name.removesuffix("_next").removesuffix("_previous").endswith("_secret")
        if is_secret and secret is not None and secret == other:
            raise ValueError(f"is the same as {PREFIX}{name.upper()}: openssl rand -hex 32 makes another")
    return secret


def _check_networks(text: str) -> str:
    parse_networks(text)
    return text


TrustedProxies = Annotated[str, AfterValidator(_check_networks)]  # `parse_networks` reads it


class RoomSettings(BaseSettings):
    """Parent of each room's one frozen settings class."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    log_level: str = "INFO"


Room = TypeVar("Room", bound=RoomSettings)


def read_settings(room: type[Room]) -> Room:
    """The room's settings from the environment, or exit 2 with one line for each variable that is wrong."""
    try:
        return room()
    except ValidationError as error:
        _exit_unusable(room, error)


def _exit_unusable(room: type[RoomSettings], error: ValidationError) -> NoReturn:
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        name = variable_name(room, str(problem["loc"][0]) if problem["loc"] else "")
        what = "is required" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
        print(f"{name}: {what}", file=sys.stderr)  # noqa: T201 - logging is not configured yet
    raise SystemExit(2)


def variable_name(room: type[RoomSettings], location: str) -> str:
    """The environment variable behind a field."""
    return f"{PREFIX}{location.removeprefix(PREFIX)}".upper()


def unknown_variables(known: Iterable[type[RoomSettings]], environ: Mapping[str, str] | None = None) -> list[str]:
    """The `NIMBUS_*` variables that no field reads: most often a typo, so `main` reports them.

    One environment often serves several rooms, hence a report and not a refusal.
    """
    names = {variable_name(room, field) for room in known for field in room.model_fields}
    environ = os.environ if environ is None else environ
    names |= DOCUMENTED_VARIABLES
    candidates = (name for name in environ if name.startswith(PREFIX) and not name.startswith(_PREFIXES_OF_ROOMS))
    return sorted(name for name in candidates if name not in names)
