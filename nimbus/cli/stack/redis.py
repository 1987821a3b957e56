"""An embedded Redis: the bell of the control plane. It keeps nothing on disk, since it is never the truth.

Called by rooms.py.
"""

from __future__ import annotations

import shutil

from nimbus.cli.stack.service import LOOPBACK, Probe, Service, ask, find_account
from nimbus.model.errors import HostFault


def find_program() -> str:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise HostFault("no Redis server is installed: apt-get install redis-server, or set NIMBUS_REDIS_URL")
    return program


def plan_server(port: int, password: str) -> Service:
    """The server as a service of the stack. Its settings go through stdin, so that ps(1) shows no password."""
    settings = (
        f"bind {LOOPBACK}",
        f"port {port}",
        f"requirepass {password}",
        "protected-mode yes",
        "daemonize no",
        'save ""',
        "appendonly no",
        "maxmemory 64mb",
        "maxmemory-policy noeviction",
        "dir /",
    )
    return Service(
        name="redis",
        argv=(find_program(), "-"),
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        ready=_answers_ping(port, password),
        account=find_account("redis"),
        stdin="".join(f"{line}\n" for line in settings).encode(),
        stop_s=5.0,
        ports={"redis": port},
    )


def render_url(password: str, port: int) -> str:
    return f"redis://:{password}@{LOOPBACK}:{port}/0"


def _answers_ping(port: int, password: str) -> Probe:
    async def probe() -> bool:
        # One write, one answer that tells both that it is ours (the password fits) and that it works.
        return (await ask(port, f"AUTH {password}\r\nPING\r\n".encode())).startswith(b"+OK")

    return probe
