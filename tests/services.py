"""Real PostgreSQL and Redis servers for tests: started once a session in a temporary folder, stopped at its end.

Use by fixture: `database_dsn` (a fresh database with the control plane's schema, cloned from a template),
`redis_url` (a server of the session's own), `redis_server` (one of the test's own, that it may stop and start).
tests/conftest.py takes the fixtures in for all; programs outside pytest open the same servers (`open_postgres`).
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.secretwatch import look_into

_BOUND = ("setpriv", "--pdeathsig")  # a server ends with the test process, however that ends
START_S = 30.0
STOP_S = 10.0


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_bin() -> Path | None:
    """The folder of the newest PostgreSQL server on this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else None


@dataclass
class PostgresServer:
    """A running server that listens on a unix socket only."""

    folder: Path
    process: subprocess.Popen[bytes]
    bin: Path
    template: str = "nimbus_template"
    command: list[str] = field(default_factory=list)
    user: str | None = None

    def dsn(self, database: str) -> str:
        return f"postgresql://nimbus@/{database}?host={self.folder}&port=5432"

    def start(self) -> None:
        """Run it again, on what it had."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, user=self.user, cwd="/", process_group=0
            )
        _wait_until(lambda: _answers(self), self.process, self.folder / "log")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends its sessions and writes all down; SIGQUIT is a crash, and leaves its log to recover from."""
        _stop(self.process, how)

    def sql(self, text: str, database: str = "postgres") -> None:
        command = [self.bin / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-h", self.folder, "-U", "nimbus", database]
        subprocess.run([*map(str, command), "-c", text], check=True, capture_output=True, env={"LC_ALL": "C"})


def _server_user() -> str | None:
    """PostgreSQL refuses root: the user to become, None where we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def start_postgres(folder: Path, binaries: Path) -> PostgresServer:
    """Create a cluster below `folder` and start it, without durability: a test's data may be lost."""
    user = _server_user()
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    data = folder / "data"
    init = [str(binaries / "initdb"), "-D", str(data), "-U", "nimbus", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([*init, "--locale=C"], check=True, capture_output=True, user=user, cwd="/")
    options = [
        "fsync=off",
        "full_page_writes=off",
        "synchronous_commit=off",
        "listen_addresses=",
        "max_connections=200",
    ]
    options += [f"unix_socket_directories={folder}", "port=5432", "shared_buffers=32MB", "logging_collector=off"]
    command = [*_BOUND, "INT", str(binaries / "postgres"), "-D", str(data)]
    command += [word for option in options for word in ("-c", option)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, user=user, cwd="/", process_group=0)
    server = PostgresServer(folder, process, binaries, command=command, user=user)
    _wait_until(lambda: _answers(server), process, folder / "log")
    return server


def _answers(server: PostgresServer) -> bool:
    ready = [str(server.bin / "pg_isready"), "-q", "-h", str(server.folder), "-p", "5432"]
    return subprocess.run(ready, check=False).returncode == 0


def _wait_until(check: object, process: subprocess.Popen[bytes], log: Path) -> None:
    assert callable(check)
    deadline = time.monotonic() + START_S
    while not check():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a test server did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes], with_signal: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(with_signal)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


@contextmanager
def open_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of one's own with a template database that holds the schema."""
    binaries = postgres_bin()
    if binaries is None:
        pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="nimbus-test-pg-"))
    server = start_postgres(folder, binaries)
    try:
        server.sql(f"CREATE DATABASE {server.template}")
        _migrate(server.dsn(server.template))
        yield server
    finally:
        _stop(server.process, signal.SIGINT)
        look_into(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL."""
    with open_postgres() as server:
        yield server


def _migrate(dsn: str) -> None:
    # by the command, not by import: tests of the host must not load the database bridge (house rule)
    environment = {"NIMBUS_DATABASE_URL": dsn, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "nimbus.control_plane.migrate"]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)


@contextmanager
def open_schema(server: PostgresServer) -> Iterator[str]:
    """A database with the schema and nothing in it, for as long as the block runs."""
    name = f"test_{secrets.token_hex(6)}"
    server.sql(f"CREATE DATABASE {name} TEMPLATE {server.template}")
    yield server.dsn(name)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """A database of the test's own, with the schema and nothing in it."""
    with open_schema(postgres_server) as dsn:
        yield dsn


@pytest.fixture
def empty_database_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """A database without any table."""
    name = f"test_{secrets.token_hex(6)}"
    postgres_server.sql(f"CREATE DATABASE {name}")
    yield postgres_server.dsn(name)
    postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class RedisServer:
    """A Redis on a unix socket that a test may stop and start again."""

    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    def start(self) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.fail("Redis is not installed: apt-get install redis-server")
        socket_path = self.folder / "redis.sock"
        command = [*_BOUND, "TERM", binary, "--port", "0", "--unixsocket", str(socket_path), "--save", ""]
        command += ["--dir", str(self.folder)]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
        _wait_until(lambda: _redis_answers(socket_path), self.process, self.folder / "log")

    def stop(self) -> None:
        if self.process is not None:
            _stop(self.process, signal.SIGTERM)
            self.process = None


def _redis_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def open_redis() -> Iterator[RedisServer]:
    """A Redis of one's own."""
    folder = Path(tempfile.mkdtemp(prefix="nimbus-test-redis-"))
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        look_into(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with open_redis() as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """The session's Redis."""
    with open_redis() as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """The session's Redis by its URL. Tests share it: use channel prefixes of your own."""
    return shared_redis.url
