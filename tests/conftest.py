"""Shared fixtures of the whole suite live here only when two rooms need them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests import secretwatch
from tests.guests import VARIABLE, read_boots
from tests.services import (  # noqa: F401 - fixtures are found by being here
    database_dsn,
    empty_database_dsn,
    postgres_server,
    redis_server,
    redis_url,
    shared_redis,
)


@pytest.fixture(autouse=True)
def _events_as_they_were() -> Iterator[None]:
    """What a test makes of the events ends with it: a level that one left behind hid later events from their tests."""
    yield
    structlog.reset_defaults()


def pytest_configure(config: pytest.Config) -> None:
    """The watch over secrets, and one file in which all the session's processes count the guests that they boot."""
    config.pluginmanager.register(secretwatch, "secretwatch")
    if VARIABLE not in os.environ:
        handle, path = tempfile.mkstemp(prefix="nimbus-boots-")
        os.close(handle)
        os.environ[VARIABLE] = path
        config.add_cleanup(lambda: Path(path).unlink(missing_ok=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many guests were real."""
    boots = read_boots()
    fake = f", {boots['fake']} doubles of a guest ran" if boots["fake"] else ""
    terminalreporter.write_line(f"{boots['qemu']} Linux guests really booted under QEMU{fake}")
