"""Shared fixtures of the whole suite live here only when two rooms need them."""

from __future__ import annotations

from tests.services import (  # noqa: F401 - fixtures are found by being here
    database_dsn,
    empty_database_dsn,
    postgres_server,
    redis_server,
    redis_url,
    shared_redis,
)
