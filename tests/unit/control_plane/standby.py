"""A replica of the tests' PostgreSQL: a real base backup that follows nobody, so that it lacks what came after it.

For tests of a failover: what a replica has lost when it is promoted is what happened since its backup.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.secretwatch import look_into
from tests.services import PostgresServer

START_S = 60.0


@dataclass
class Standby:
    """A copy of a server, in recovery until it is promoted. Its calls block: nothing else happens in such a test."""

    folder: Path
    bin: Path
    user: str | None
    process: subprocess.Popen[bytes] | None = None

    def dsn(self, database: str) -> str:
        return f"postgresql://nimbus@/{database}?host={self.folder}&port=5432"

    def start(self) -> None:
        """Let it run, read-only, as far as its backup goes."""
        data = self.folder / "data"
        (data / "standby.signal").touch()
        options = ["listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off", "max_connections=200"]
        command = ["setpriv", "--pdeathsig", "INT", str(self.bin / "postgres"), "-D", str(data)]
        command += [word for option in options for word in ("-c", option)]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=self.user, cwd="/", process_group=0)
        self._wait_until("SELECT pg_is_in_recovery()")

    def promote(self) -> None:
        """Make it a primary on a timeline of its own."""
        self._ask(f"SELECT pg_promote(true, {START_S:.0f})")
        self._wait_until("SELECT NOT pg_is_in_recovery()")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            self.process.wait(START_S)

    def _ask(self, question: str) -> str:
        command = [str(self.bin / "psql"), "-qXAt", "-h", str(self.folder), "-U", "nimbus", "-c", question, "postgres"]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    def _wait_until(self, question: str) -> None:
        deadline = time.monotonic() + START_S
        while self._ask(question) != "t":
            if time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)


@contextmanager
def copy_server(server: PostgresServer) -> Iterator[Standby]:
    """A standby with everything the server has committed by now; gone with the block."""
    user = pwd.getpwuid((server.folder / "data").stat().st_uid).pw_name if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="nimbus-test-pg-"))
    standby = Standby(folder, server.bin, user)
    try:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        backup = [str(server.bin / "pg_basebackup"), "-h", str(server.folder), "-U", "nimbus", "--no-sync"]
        backup += ["--checkpoint=fast", "-X", "stream", "-D", str(folder / "data")]
        subprocess.run(backup, check=True, capture_output=True, user=user, cwd="/")
        yield standby
    finally:
        standby.stop()
        look_into(folder)
        shutil.rmtree(folder, ignore_errors=True)
