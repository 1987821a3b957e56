"""The logging pipeline's variables, read once by `main`. Below it, small values are passed, never these classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator

from nimbus.runtime.settings import RoomSettings, SigningSecret, TrustedProxies, read_shared, refuse_repeated

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def check_identifier(name: str) -> str:
    """The name itself where it can stand in a statement as it is; ValueError otherwise."""
    if not _IDENTIFIER.fullmatch(name) or not name.isascii():
        raise ValueError("needs a plain name: letters, digits and underscores")
    return name


Identifier = Annotated[str, AfterValidator(check_identifier)]


class StoreSettings(RoomSettings):
    """Where rows are stored: a real ClickHouse server, or the embedded engine where no URL is given."""

    clickhouse_url: str | None = None
    clickhouse_database: Identifier = "nimbus"
    clickhouse_table: Identifier = "ci_logs"
    clickhouse_username: str | None = None
    clickhouse_password: SecretStr | None = None
    clickhouse_timeout: float = Field(default=10.0, gt=0, le=300)
    logging_retention_days: int = Field(default=30, ge=1, le=3650)
    state_dir: Path = Path("/var/lib/nimbus")


class Settings(StoreSettings):
    """Everything that `python -m nimbus.logging_pipeline.main` needs."""

    control_plane_url: str
    jwt_secret: SigningSecret
    jwt_secret_next: SigningSecret | None = None
    jwt_secret_previous: SigningSecret | None = None
    jwks_url: str | None = None  # none: the control plane's own
    logging_bind: str = "127.0.0.1:8002"
    logging_query_seconds: float = Field(
        default=5.0,
        ge=0.1,
        le=300,
        description="seconds that one search, count or page may take in the store; beyond that its caller is told to "
        "narrow it (503). Never more than four fifths of NIMBUS_CLICKHOUSE_TIMEOUT",
    )
    logging_query_rows: int = Field(
        default=50_000_000,
        ge=1000,
        le=10**12,
        description="rows that one search or count may read; beyond that its caller is told to narrow it (400)",
    )
    logging_query_memory_mib: int = Field(
        default=512, ge=64, le=1_048_576, description="memory that one of them may use in the store, in MiB (400)"
    )
    logging_query_org_limit: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="searches, counts and beginnings of downloads of one org that run or wait at once; more are told "
        "to come again (429). One of them runs at a time, so that no org's searches hold up another's",
    )
    logging_intake_mib: int = Field(
        default=64,
        ge=16,
        le=16_384,
        description="output that may be on its way into the store, in MiB; an org may take as much as it leaves free, "
        "beyond that it is told to come again (429), as all are where nothing is free (503)",
    )
    logging_machine_intake_mib: int = Field(
        default=16, ge=8, le=16_384, description="the same for one machine: it sends one body after the other"
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis, where several of this service run behind one address: it carries live output between them. "
        "One alone needs none",
    )
    logging_tail_heartbeat: float = Field(
        default=15.0, ge=1, le=300, description="seconds after which a silent stream says that it is alive"
    )
    logging_tail_limit: int = Field(default=2000, ge=1, le=100_000, description="streams that this process serves")
    logging_tail_org_limit: int = Field(default=200, ge=1, le=100_000, description="the same for one org")
    logging_tail_queue_rows: int = Field(
        default=5000, ge=1, le=1_000_000, description="rows a slow stream may lag behind before it reads the store"
    )
    logging_tail_queue_kib: int = Field(default=2048, ge=64, le=1_048_576, description="the same in KiB of output")
    logging_revocation_interval: float = Field(
        default=2.0,
        ge=0.1,
        le=300,
        description="seconds between two looks at the list of revoked tokens: a stream ends so long after its token",
    )
    logging_mask_refresh: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="seconds after which an org's registered secrets are asked for anew, while its output comes",
    )
    logging_mask_patience: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="seconds that output of an org waits at its agents for registered secrets that were never fetched; "
        "then it is taken with the known shapes hidden only",
    )
    metrics_token: SecretStr | None = None
    trusted_proxies: TrustedProxies = ""  # comma-separated networks; empty: no proxy is believed

    @field_validator("jwt_secret", "jwt_secret_next", "jwt_secret_previous")
    @classmethod
    def _check_repeated(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        return refuse_repeated(secret, info)

    @property
    def jwt_secrets(self) -> tuple[str, ...]:
        """All that are accepted; the first signs."""
        return read_shared(self, "jwt_secret").accepted

    @property
    def key_set_url(self) -> str:
        return self.jwks_url or f"{self.control_plane_url.rstrip('/')}/.well-known/jwks.json"
