"""An embedded PostgreSQL: the distribution's own server on a data folder of ours. Never touches a system cluster.

PostgreSQL refuses to run as root, and a checkout below a folder that only root may enter is out of its user's reach.
So the server gets its data folder as an open descriptor and knows it as /proc/self/fd/N. It listens on loopback
only, with a password (SCRAM); there is no Unix socket. Called by rooms.py; why Debian's packages: docs/decisions.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from nimbus.cli.stack.child import memory_file
from nimbus.cli.stack.service import LOOPBACK, Account, Probe, Service, find_account
from nimbus.model.errors import HostFault

USER = "nimbus"
DATABASE = "nimbus"
STOP_S = 30.0  # a fast shutdown writes a checkpoint
LEFTOVER_S = 10.0  # backends notice the death of their postmaster within seconds
_PLAIN_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Cluster:
    """One data folder, opened, and the server programs for it."""

    programs: Path
    folder: Path
    folder_fd: int  # the caller's, inheritable through keep_fds
    account: Account | None

    @property
    def name_inside(self) -> str:
        return f"/proc/self/fd/{self.folder_fd}"


def find_programs(root: Path = Path("/usr/lib/postgresql")) -> Path:
    """The folder of the newest server programs; HostFault where there are none."""
    versions = [p for p in root.glob("*/bin") if (p / "postgres").exists() and re.fullmatch(r"\d+", p.parent.name)]
    if versions:
        return max(versions, key=lambda p: int(p.parent.name))
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise HostFault("no PostgreSQL server is installed: apt-get install postgresql, or set NIMBUS_DATABASE_URL")


def open_cluster(folder: Path, password: str) -> Cluster:
    """The data folder, made once (blocking, about a second the first time), with nobody working on it."""
    programs = find_programs()
    account = find_account("postgres")
    wait_for_leftovers(folder)
    if not (folder / "PG_VERSION").exists():
        _create_cluster(programs, folder, account, password)
    _check_version(programs, folder)
    return Cluster(programs, folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY), account)


def plan_server(cluster: Cluster, port: int) -> Service:
    """The server as a service of the stack."""
    settings = {
        "listen_addresses": LOOPBACK,
        "port": str(port),
        "unix_socket_directories": "",
        "fsync": "on",
        "max_connections": "100",
        "jit": "off",  # short queries only: compiling them costs more than running them
        "log_error_verbosity": "terse",  # its details are the values of rows, and keys are among them
        "log_timezone": "UTC",
        "timezone": "UTC",
    }
    argv = [str(cluster.programs / "postgres"), "-D", cluster.name_inside]
    for name, value in settings.items():
        argv += ["-c", f"{name}={value}"]
    return Service(
        name="postgres",
        argv=tuple(argv),
        env=_PLAIN_ENV,
        ready=_says_ready(cluster.folder),
        account=cluster.account,
        keep_fds=(cluster.folder_fd,),
        stop_signal=signal.SIGINT,  # "fast shutdown": open sessions end, nothing is lost
        stop_s=STOP_S,
        ports={"postgres": port},
    )


def render_dsn(password: str, port: int) -> str:
    return f"postgresql://{USER}:{password}@{LOOPBACK}:{port}/{DATABASE}"


def wait_for_leftovers(folder: Path) -> None:
    """Until no server of an earlier stack works on this folder; a stuck one is stopped, a stale lock removed.

    Two servers on one folder destroy it. A server's processes stand in their data folder, which tells them apart
    from every other PostgreSQL of the machine; the pid in a lock file alone may by now be somebody else's.
    """
    if not folder.is_dir():
        return
    begun = time.monotonic()
    while pids := _servers_of(folder):
        waited = time.monotonic() - begun
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT if waited < LEFTOVER_S else signal.SIGKILL)
        if waited > 2 * LEFTOVER_S:
            raise HostFault(f"an older PostgreSQL (pid {pids[0]}) still works on {folder} and does not end: stop it")
        time.sleep(0.05)
    (folder / "postmaster.pid").unlink(missing_ok=True)


def _servers_of(folder: Path) -> list[int]:
    home = folder.stat()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):
                cwd = os.stat(f"/proc/{entry.name}/cwd")
                if (cwd.st_dev, cwd.st_ino) == (home.st_dev, home.st_ino):
                    name = Path(f"/proc/{entry.name}/comm").read_text().strip()
                    if name in {"postgres", "postmaster"}:
                        found.append(int(entry.name))
    return found


def _create_cluster(programs: Path, folder: Path, account: Account | None, password: str) -> None:
    """initdb and our database in a folder beside it, renamed when complete: half a cluster is never seen."""
    draft = folder.with_name(folder.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    if account is not None:
        os.chown(draft, account.uid, account.gid)
    fd = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
    try:
        cluster = Cluster(programs, draft, fd, account)
        options = ["--auth=scram-sha-256", "--pwfile=/dev/stdin", "--encoding=UTF8", "--no-locale", "--data-checksums"]
        _run_program(cluster, ["initdb", *options, f"--username={USER}", "--no-instructions"], f"{password}\n")
        _run_program(cluster, ["postgres", "--single"], f"CREATE DATABASE {DATABASE}\n", "postgres")
    finally:
        os.close(fd)
    if folder.exists():
        folder.rmdir()  # empty, or it is none of ours
    draft.rename(folder)


def _run_program(cluster: Cluster, words: list[str], stdin: str, *rest: str) -> None:
    argv = [str(cluster.programs / words[0]), *words[1:], "-D", cluster.name_inside, *rest]
    who = cluster.account
    fd = memory_file(stdin.encode())  # and no pipe: initdb opens /dev/stdin by name, which the other user may not
    try:
        done = subprocess.run(
            argv,
            stdin=fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_PLAIN_ENV,
            pass_fds=(cluster.folder_fd,),
            check=False,
            user=who.uid if who else None,
            group=who.gid if who else None,
            extra_groups=[] if who else None,
        )
    finally:
        os.close(fd)
    if done.returncode != 0:
        told = done.stdout.decode(errors="replace").strip().splitlines()[-3:]
        raise HostFault(f"{words[0]} failed with status {done.returncode}: {'; '.join(told)}")


def _check_version(programs: Path, folder: Path) -> None:
    made_by = (folder / "PG_VERSION").read_text().strip()
    ours = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\d+)", ours)
    if match is not None and match[1] != made_by:
        raise HostFault(
            f"{folder} was made by PostgreSQL {made_by}, but {match[1]} is installed: "
            f"install postgresql-{made_by}, or move the folder away to start empty"
        )


def _says_ready(folder: Path) -> Probe:
    async def probe() -> bool:
        await trio.lowlevel.checkpoint()
        # What pg_ctl reads: the eighth line of the lock file, from the page cache.
        try:
            lines = (folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"

    return probe
