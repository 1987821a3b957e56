"""The suite's watch over secrets: all that its tests and their processes print and log is searched for every secret
that they use; one found anywhere fails the session.

A pytest plugin (conftest.py loads it; test_secretwatch.py loads it alone). It learns the secrets where they are handed
out: the environment of every process that is started, every variable that is set, secrets.env of a stack, and what a
test tells by `learn`. Output is what a test's report holds (stdout, stderr, log records) and every output file below
the session's temporary folder; `look_into` searches a folder that goes earlier. A hit names place, line and which
secret; never the secret.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.secretforms import Forms

FILE_BYTES_MAX = 64 * 1024 * 1024
SECRETS_FILE, APP_KEY_FILE = "secrets.env", "github-app.pem"  # of a stack's state folder
_SECRET_NAME = re.compile(r"(NIMBUS|STACK)_[A-Z_]*(SECRET|TOKEN|PASSWORD|PRIVATE_KEY|SIGNING_KEY)(_NEXT|_PREVIOUS)?")
_URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:([^/\s@]+)@")
_OUTPUT_NAME = re.compile(r"log|told\.jsonl|errors\.txt|.+\.(log|log\.1|out|err|stdout|stderr)")
# What a place prints because that is what it is for: a regular expression of the place, and the reason.
_MEANT: tuple[tuple[str, str], ...] = ()


@dataclass
class Watch:
    """What is looked for, and what was found."""

    forms: Forms = field(default_factory=Forms)
    found: dict[str, None] = field(default_factory=dict)  # in order, each once
    folder: Path | None = None  # the session's own
    searched: int = 0  # characters
    owner: int = field(default_factory=os.getpid)  # a forked child has a memory of its own: it looks at nothing

    def learn_environment(self, env: Mapping[str, str]) -> None:
        for name, value in env.items():
            if name.startswith(("NIMBUS_", "STACK_")):
                self.learn_variable(name, value)

    def learn_variable(self, name: str, value: str) -> None:
        if _SECRET_NAME.fullmatch(name):
            self.forms.learn(name, value)
        for password in _URL_PASSWORD.findall(value):
            self.forms.learn(f"the password in {name}", unquote(password))

    def look_at(self, place: str, text: str) -> None:
        """Search a text that was printed or logged."""
        if os.getpid() != self.owner or any(re.search(meant, place) for meant, _ in _MEANT):
            return
        self.searched += len(text)
        for hit in self.forms.find(text):
            self.found[f"{place}, line {hit.line}: {hit.what}"] = None

    def look_into(self, folder: Path) -> None:
        """Search every output file below a folder."""
        for path in _walk(folder):
            if path.name == APP_KEY_FILE:
                self.forms.learn(APP_KEY_FILE, _read(path))
            elif path.name == SECRETS_FILE:
                lines = (line.partition("=") for line in _read(path).splitlines())
                self.learn_environment({name: value for name, _, value in lines})
        for path in _walk(folder):
            if _OUTPUT_NAME.fullmatch(path.name):
                self.look_at(str(path), _read(path))


WATCH = Watch()


def learn(what: str, secret: str) -> None:
    """From now on no output may hold this."""
    WATCH.forms.learn(what, secret)


def look_into(folder: Path) -> None:
    """Search the output files of a folder that is about to be removed."""
    WATCH.look_into(folder)


def look_at(place: str, text: str) -> None:
    """Search what a process of a test printed."""
    WATCH.look_at(place, text)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if name in {SECRETS_FILE, APP_KEY_FILE} or _OUTPUT_NAME.fullmatch(name):
                yield path


def _read(path: Path) -> str:
    """What stands in a regular file; nothing where it went meanwhile."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(handle, "rb") as file:
        return file.read(FILE_BYTES_MAX).decode(errors="replace") if stat.S_ISREG(os.fstat(handle).st_mode) else ""


def _hear(event: str, args: tuple[Any, ...]) -> None:
    """The interpreter's own announcements, so that nobody who starts a process has to think of telling."""
    if event == "subprocess.Popen" and isinstance(args[3], Mapping):
        WATCH.learn_environment({os.fsdecode(name): os.fsdecode(value) for name, value in args[3].items()})
    elif event == "os.putenv":
        WATCH.learn_variable(os.fsdecode(args[0]), os.fsdecode(args[1]))


def pytest_configure() -> None:
    """Learn what is in the environment already, and whatever is put into one."""
    WATCH.learn_environment(os.environ)
    sys.addaudithook(_hear)


@pytest.fixture(scope="session", autouse=True)
def _watched_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The folder in which all tests have theirs."""
    WATCH.folder = tmp_path_factory.getbasetemp()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Search what a test and its fixtures printed and logged; the last report of a test holds all of it."""
    if report.when == "teardown":
        for name, text in report.sections:
            WATCH.look_at(f"{report.nodeid} ({name})", text)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search the files, and fail the session for what was found in it."""
    if WATCH.folder is not None:
        WATCH.look_into(WATCH.folder)
    if WATCH.found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where each stands, or how much was searched for how many."""
    told = f"{len(WATCH.forms)} secrets looked for in {WATCH.searched / 1e3:,.0f} kB of output"
    if not WATCH.found:
        terminalreporter.write_line(f"{told}: none is in it")
        return
    terminalreporter.section("secrets in the output", red=True)
    for line in WATCH.found:
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"{told}: {len(WATCH.found)} places", red=True)
