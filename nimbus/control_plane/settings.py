"""The control plane's variables, read once by `main`. Below it, small values are passed, never these classes."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from nimbus.control_plane.queue.outcome import MAX_GRANTS
from nimbus.model.errors import Refused
from nimbus.model.release import parse_release
from nimbus.model.vm import MAX_CPUS
from nimbus.runtime.postgres import TRANSACTION_S
from nimbus.runtime.settings import (
    PostgresDsn,
    RoomSettings,
    SharedSecret,
    SigningSecret,
    TrustedProxies,
    read_shared,
    refuse_repeated,
)

_SHARED = tuple(
    f"{name}{suffix}"
    for name in ("jwt_secret", "agent_token_secret", "cache_shared_secret")
    for suffix in ("", "_next", "_previous")
)


class DatabaseSettings(RoomSettings):
    """What `python -m nimbus.control_plane.migrate` needs."""

    database_url: PostgresDsn


class Settings(DatabaseSettings):
    """Everything that `python -m nimbus.control_plane.main` needs."""

    github_app_id: int
    github_app_private_key: SecretStr
    github_app_installation_id: int | None = None  # only a default: each webhook names its own
    github_webhook_secret: SecretStr
    github_webhook_secret_previous: SecretStr | None = None  # accepted during a rotation
    github_api_url: str = "https://api.github.com"
    github_concurrency: int = Field(
        default=20,
        ge=2,
        le=100,
        description="calls to GitHub at once for one installation; GitHub allows 100 to all processes together",
    )
    github_write_points: int = Field(
        default=900,
        ge=10,
        description="points a minute that calls for one installation may cost: a read 1, a write 5. GitHub allows 900 "
        "to all processes together",
    )
    github_reserve: float = Field(
        default=0.1,
        ge=0,
        le=0.9,
        description="share of places, points and hourly quota that is kept for runners: polls stop earlier",
    )
    github_owner_retry: float = Field(
        default=300.0,
        gt=0,
        description="seconds before a refusal that somebody must end (a suspension, a permission) is asked about again",
    )
    github_penalty: float = Field(
        default=60.0,
        gt=0,
        le=900,
        description="seconds without a call after a limit for which GitHub names no time, doubled each time in a row; "
        "GitHub wants 60 at least",
    )
    redis_url: SecretStr  # secret: it may hold a password
    jwt_secret: SigningSecret
    jwt_secret_next: SigningSecret | None = None
    jwt_secret_previous: SigningSecret | None = None
    public_base_url: str
    cache_shared_secret: SigningSecret
    cache_shared_secret_next: SigningSecret | None = None
    cache_shared_secret_previous: SigningSecret | None = None
    cache_token_ttl: int = Field(default=3600, ge=60)
    agent_token_secret: SigningSecret
    agent_token_secret_next: SigningSecret | None = None
    agent_token_secret_previous: SigningSecret | None = None
    agent_token_ttl: int = Field(default=3600, ge=60)
    agent_token_rate_limit: int = Field(default=15, ge=1)
    agent_token_rate_interval: float = Field(default=60.0, gt=0)
    agent_heartbeat_interval: float = Field(
        default=15.0,
        ge=1,
        le=300,
        description="seconds between two reports of a host, beside those of a change; twice that where nothing runs",
    )
    agent_min_version: str | None = Field(
        default=None, description="agents of an older release, like 0.2.0, are granted no work and told so; unset: any"
    )
    agent_state_database_url: PostgresDsn | None = Field(
        default=None,
        description="PostgreSQL for the copy of the hosts' ledgers that `nimbus hosts` shows; unset: "
        "NIMBUS_DATABASE_URL. Nothing is recovered from it, and work goes on while it is away",
    )
    admin_allowed_subjects: Annotated[str, NoDecode] = ""  # comma-separated; empty: all
    control_plane_bind: str = "127.0.0.1:8000"
    metrics_token: SecretStr | None = None
    trusted_proxies: TrustedProxies = ""  # comma-separated networks; empty: no proxy is believed
    log_public_url: str | None = None  # where agents send job output, unless NIMBUS_LOG_SINK_URL of theirs says another
    job_lease_ttl: float = Field(default=300.0, ge=1.0)
    job_in_progress_lease_ttl: float = Field(default=3600.0, ge=1.0)  # GitHub gives no second runner
    lease_sweep_interval: float = Field(
        default=1.0, gt=0, le=60, description="seconds between two looks for leases whose holder fell silent"
    )
    job_max_attempts: int = Field(default=3, ge=1, le=MAX_GRANTS)
    lease_look_interval: float = Field(
        default=2.0,
        gt=0,
        le=60,
        description="seconds between two looks into the queue for the agents that wait, where no bell rings",
    )
    wake_patience: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="seconds that a woken agent has to lease what it was woken for, before another one is woken",
    )
    priority_aging: float = Field(
        default=60.0,
        gt=0,
        le=86400.0,
        description="seconds of waiting that are worth one step of priority; holds for what is queued from then on",
    )
    starvation_after: float = Field(
        default=300.0,
        ge=0,
        description="seconds that a machine request waits for free room before a host makes room for it; 0: none does",
    )
    org_job_rate_limit: int = Field(default=100, ge=1)
    org_rate_interval: float = Field(default=60.0, gt=0)
    rate_limit_without_redis: Literal["local", "allow", "refuse"] = Field(
        default="local",
        description="what becomes of these limits while Redis is away: `local`, each process counts by itself, so that "
        "all together may let pass that many times as much; `allow`, there is none; `refuse`, submissions get a 503 "
        "and GitHub's jobs wait. Agents' tokens are always counted as with `local`",
    )
    signing_key: SecretStr | None = None  # Ed25519 PEM; none: made, rotated and kept in the database
    signing_key_next: SecretStr | None = None
    signing_key_previous: SecretStr | None = None
    jwks_max_age: int = Field(
        default=300, ge=1, le=86400, description="seconds for which verifiers may keep the public keys they fetched"
    )
    key_refresh_interval: float = Field(
        default=30.0, gt=0, le=3600, description="seconds after which each process reads the keys anew, told or not"
    )
    key_publish_lead: float = Field(
        default=600.0,
        gt=0,
        description="seconds a new key is published before it signs; NIMBUS_JWKS_MAX_AGE and "
        "NIMBUS_KEY_REFRESH_INTERVAL together at least",
    )
    key_rotation_interval: float = Field(
        default=2592000.0,
        ge=0,
        description="seconds after which agents' and machines' keys are rotated by themselves; 0: by command only",
    )
    database_pool_size: int = Field(default=8, ge=2, le=200)
    webhook_timestamp_required: bool = False  # GitHub sends none: only behind a relay that adds it
    webhook_timestamp_tolerance: float = Field(default=300.0, gt=0)
    delivery_retention: float = Field(default=604800.0, ge=259200.0)  # not below GitHub's own three days
    inbox_look_interval: float = Field(
        default=5.0,
        gt=0,
        le=300,
        description="seconds after which a process looks into the inbox though nobody told it to: for what is to be "
        "tried again, and for what a process that died left",
    )
    inbox_claim: float = Field(
        default=20.0,
        gt=TRANSACTION_S,
        le=3600,
        description="seconds a delivery belongs to the process that began it; more than a transaction may last",
    )
    inbox_retry: float = Field(
        default=5.0,
        gt=0,
        le=600,
        description="seconds before a delivery whose processing failed is tried again; n² times that after the n-th",
    )
    inbox_sweep_interval: float = Field(
        default=60.0, gt=0, le=86400, description="seconds between two looks for deliveries that may be forgotten"
    )
    repair_takes: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="seconds that a round of polling or redelivery takes, more where there are many repositories: so "
        "much later than its interval an event may still come that tells which job a runner served",
    )
    redelivery_interval: float = Field(
        default=120.0,
        ge=0,
        description="seconds between two looks for failed deliveries; 0: they are never asked for",
    )
    redelivery_window: float = Field(
        default=259200.0, gt=0, le=259200.0, description="seconds that the first of these looks goes back"
    )
    poll_interval: float = Field(
        default=300.0,
        ge=0,
        description="seconds between two polls of a repository where jobs run; slower while little of GitHub's quota "
        "is left; 0 polls none",
    )
    poll_idle_interval: float = Field(
        default=900.0, gt=0, description="the same for one where nothing happens; longer where there are hundreds"
    )
    poll_idle_after: float = Field(
        default=21600.0, gt=0, description="seconds without a job or a push after which a repository counts as one"
    )
    installations_interval: float = Field(
        default=900.0,
        ge=0,
        description="seconds between two lists of installations and their repositories; 0: none",
    )
    duty_ttl: float = Field(
        default=60.0, ge=1, description="seconds after which another process does the work of one that died"
    )
    demand_interval: float = Field(
        default=15.0, gt=0, description="seconds between two looks for queued jobs that lack a machine"
    )
    demand_pause: float = Field(
        default=60.0,
        ge=0,
        description="seconds after a runner's machine ended without a job before that look makes another",
    )
    runner_level: Literal["repo", "org"] = "repo"  # where runners register
    runner_group_id: int = Field(default=1, ge=1)
    runner_registration: Literal["jit", "token"] = "jit"
    runner_command: str = "/usr/local/bin/nimbus-runner"
    runner_sweep_interval: float = Field(default=60.0, ge=0)
    runner_idle_limit: float = Field(default=300.0, ge=0)
    runner_end_limit: float = Field(default=300.0, ge=0)
    runner_zombie_age: float = Field(default=600.0, gt=0)
    github_url: str = "https://github.com"
    job_labels: str = "nimbus"  # comma-separated: a job that carries none of them is not ours
    label_max_cpus: int = Field(
        default=MAX_CPUS,
        ge=1,
        le=MAX_CPUS,
        description="CPUs that a label (`nimbus-4cpu-8gb`) may ask for, at most",
    )
    label_max_memory_gb: int = Field(default=256, ge=1, le=16384, description="the same for memory, in GiB")
    label_max_disk_gb: int = Field(default=1024, ge=1, le=65536, description="the same for disk, in GiB")
    stolen_limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="runners of a label set that jobs of other labels may take, for each of its jobs, in an hour; "
        "beyond that no more are made",
    )
    default_image: str = "base"

    @property
    def runner_argv(self) -> tuple[str, ...]:
        return tuple(shlex.split(self.runner_command))

    @field_validator("runner_command")
    @classmethod
    def _check_command(cls, command: str) -> str:
        if not shlex.split(command):  # what it cannot split raises by itself
            raise ValueError("names no command")
        return command

    @field_validator("agent_min_version")
    @classmethod
    def _check_version(cls, version: str | None) -> str | None:
        if version is not None:
            try:
                parse_release(version)
            except Refused as error:
                raise ValueError(str(error)) from error
        return version

    @field_validator(*_SHARED)
    @classmethod
    def _check_repeated(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        return refuse_repeated(secret, info)

    @field_validator("signing_key_next", "signing_key_previous")
    @classmethod
    def _check_beside(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if key is not None and info.data.get("signing_key") is None:
            raise ValueError("stands beside NIMBUS_SIGNING_KEY only: keys of the database are rotated by themselves")
        return key

    @field_validator("key_publish_lead")
    @classmethod
    def _check_lead(cls, lead_s: float, info: ValidationInfo) -> float:
        known_s = info.data.get("jwks_max_age", 0) + info.data.get("key_refresh_interval", 0)
        if lead_s < known_s:
            raise ValueError(f"must be {known_s:g} at least: until then a verifier may not know the new key")
        return lead_s

    @field_validator("key_rotation_interval")
    @classmethod
    def _check_rotation(cls, interval_s: float, info: ValidationInfo) -> float:
        lead_s = info.data.get("key_publish_lead", 0)
        if interval_s and interval_s < lead_s:
            raise ValueError(f"must be 0, or {lead_s:g} at least, as long as a key is published before it signs")
        return interval_s

    @property
    def shared_secrets(self) -> tuple[SharedSecret, ...]:
        return tuple(read_shared(self, name) for name in ("jwt_secret", "agent_token_secret", "cache_shared_secret"))

    @property
    def jwt_secrets(self) -> tuple[str, ...]:
        """All that are accepted; the first signs."""
        return read_shared(self, "jwt_secret").accepted

    @property
    def agent_secrets(self) -> tuple[str, ...]:
        return read_shared(self, "agent_token_secret").accepted

    @property
    def cache_secrets(self) -> tuple[str, ...]:
        return read_shared(self, "cache_shared_secret").accepted

    @property
    def allowed_subjects(self) -> frozenset[str]:
        return _words(self.admin_allowed_subjects)

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order in which they are written: an alias stands for the first of them."""
        return tuple(dict.fromkeys(word.strip().lower() for word in self.job_labels.split(",") if word.strip()))


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(",") if word.strip())
