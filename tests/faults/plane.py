"""A control plane and a logging pipeline in one small process, over real HTTP, that can be told to misbehave.

Knows one machine request at a time by the rules of the real one: fences only grow, a write under another fence is
refused, one end is accepted, an agent that enrols says what it still holds. A fault strikes one route once. Synchronous
threads, so that it can be forked beside agents. Started and asked by case.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Ending, Shape
from nimbus.wire.leaseapi import Grant, GrantTimes, MachineKind, RenewReply, RunnerReply, render_grant
from nimbus.wire.leaseapi import render_renew_reply as render_renewal
from nimbus.wire.leaseapi import render_runner_reply as render_runner
from tests.faults.clones import IMAGE
from tests.faults.strike import DELAY_S, HANG_S, Kind
from tests.faults.witness import beat_argv

TTL_S = 12.0  # an agent renews each third of it; a run of a killed agent never waits for its end
ATTEMPTS = 3
POLL_S = 2.0  # how long a lease request is held open
ROUTES = ("enrol", "lease", "renew_booting", "renew_running", "runner", "finish", "ingest")
SECRET = "neither-told-nor-kept"  # part of each token and of the guest's own configuration
Reply = tuple[int, dict[str, Any] | None]
FENCED: Reply = (409, {"error": "fenced", "message": "the lease belongs to another"})


@dataclass
class Machine:
    """One machine request."""

    number: int
    beats: int
    fence: int = 0
    lease_id: str = ""
    until: float = 0.0  # monotonic seconds; 0 while it is queued
    ends: list[dict[str, Any]] = field(default_factory=list)  # accepted
    ended_fence: int = 0  # the last that said its end
    retried: list[str] = field(default_factory=list)  # causes of host faults that did not count as an end
    late: int = 0  # ends that were refused
    repeated: int = 0
    rows: dict[int, dict[int, str]] = field(default_factory=dict)  # fence -> number -> text
    clashes: list[str] = field(default_factory=list)


class Plane:
    """All that it knows, behind one lock."""

    def __init__(self, beat_file: Path) -> None:
        self.url = ""
        self._beat_file = beat_file
        self._lock = threading.Condition()
        self._machine: Machine | None = None
        self._fault: tuple[str, Kind] | None = None
        self._struck = False
        self._agent = 0
        self._asked: Counter[str] = Counter()
        self._released = threading.Event()

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        """What the campaign tells and asks."""
        with self._lock:
            if "machine" in order:
                self._machine = Machine(order["machine"], order["beats"]) if order["machine"] is not None else None
                self._lock.notify_all()
            if "fault" in order:
                self._released.set()
                self._released = threading.Event()
                self._fault = (order["fault"]["route"], Kind(order["fault"]["kind"])) if order["fault"] else None
                self._struck = False
                self._asked.clear()
            if "agent" in order:
                self._agent = order["agent"]
            return {"struck": self._struck, "asked": self._asked, "machine": vars(self._machine or Machine(0, 0))}

    def strike(self, route: str) -> Kind | None:
        """The fault that this request meets."""
        with self._lock:
            self._asked[route] += 1
            if self._fault is None or self._fault[0] != route or self._struck:
                return None
            self._struck = True
            return self._fault[1]

    def kill_agent(self) -> None:
        os.kill(self._agent, signal.SIGKILL)

    def hang(self) -> None:
        self._released.wait(HANG_S)

    def act(self, route: str, path: str, body: dict[str, Any], token: str, alive: socket.socket) -> Reply:
        """What the real one would do."""
        if route == "enrol":
            return self._enrol(body)
        if route == "lease":
            return self._lease(alive)
        with self._lock:
            machine = self._machine
            if machine is None:
                return FENCED
            if route == "ingest":
                return self._ingest(machine, body, token)
            self._expire(machine)
            mine = (int(path.split("/")[3]), body["fence"], body["lease_id"])
            if mine != (machine.number, machine.fence, machine.lease_id):
                machine.late += route == "finish"
                return FENCED
            return self._write(machine, route, body)

    def _write(self, machine: Machine, route: str, body: dict[str, Any]) -> Reply:
        if route == "finish":
            return self._finish(machine, body)
        if machine.ended_fence == machine.fence:
            return FENCED
        if route == "runner":
            argv = beat_argv(self._beat_file, machine.number, machine.fence, machine.beats)
            return 200, render_runner(RunnerReply(f"runner-{machine.number}", argv, {"JIT_CONFIG": f"jit-{SECRET}"}))
        machine.until = time.monotonic() + TTL_S
        return 200, render_renewal(RenewReply(TTL_S, cancel=False))

    def _finish(self, machine: Machine, body: dict[str, Any]) -> Reply:
        """A host's own fault is tried again, on any host, some times."""
        again = body["ending"] == Ending.HOST_FAULT and machine.fence < ATTEMPTS
        if machine.ended_fence == machine.fence:
            machine.repeated += 1
        elif again:
            machine.retried.append(body["cause"])
        else:
            machine.ends.append(body)
        machine.ended_fence = machine.fence
        machine.until = 0.0
        self._lock.notify_all()
        return 200, {"state": "queued" if again else "done"}

    def _enrol(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            machine = self._machine
            held = body.get("held")
            if machine is not None and held is not None:
                keys = {(key["machine_id"], key["fence"]) for key in held}
                if (machine.number, machine.fence) not in keys:
                    machine.until = 0.0
                    self._lock.notify_all()
        return 200, {"token": f"token-{SECRET}", "expires_in_s": 3600, "agent_id": "a", "lease_ttl_s": TTL_S}

    def _lease(self, alive: socket.socket) -> Reply:
        deadline = time.monotonic() + POLL_S
        with self._lock:
            while True:
                machine = self._machine
                if machine is not None:
                    self._expire(machine)
                    if not machine.ends and machine.until == 0.0 and _is_open(alive):
                        return 200, self._grant(machine)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return 204, None
                self._lock.wait(min(left_s, 0.5))

    def _grant(self, machine: Machine) -> dict[str, Any]:
        machine.fence += 1
        machine.lease_id = str(uuid.uuid4())
        machine.until = time.monotonic() + TTL_S
        key = LeaseKey(machine.number, machine.lease_id, machine.fence)
        now_ms = time.time_ns() // 1_000_000
        return render_grant(
            Grant(
                key,
                TTL_S,
                1,
                MachineKind.RUNNER,
                Shape(),
                IMAGE,
                ("nimbus",),
                None,
                f"{self.url}/ingest",
                f"{machine.number}-{machine.fence}",
                GrantTimes(None, now_ms, now_ms),
            )
        )

    def _expire(self, machine: Machine) -> None:
        if machine.until and time.monotonic() > machine.until:
            machine.until = 0.0
            machine.lease_id = ""
            self._lock.notify_all()

    def _ingest(self, machine: Machine, body: dict[str, Any], token: str) -> Reply:
        number, fence = (int(word) for word in token.split("-"))
        if number == machine.number:
            rows = machine.rows.setdefault(fence, {})
            for row in body["rows"]:
                if rows.setdefault(row["seq"], row["message"]) != row["message"]:
                    machine.clashes.append(f"row {row['seq']} of fence {fence} came twice and differently")
        return 200, {"stored": len(body["rows"]), "refused": []}


def _is_open(peer: socket.socket) -> bool:
    """False where the agent that asked is gone: nothing is leased to the dead."""
    readable, _, _ = select.select([peer], [], [], 0)
    try:
        return not readable or peer.recv(1, socket.MSG_PEEK) != b""
    except OSError:
        return False


def find_route(path: str, body: dict[str, Any]) -> str:
    """The name of what is asked."""
    last = path.rsplit("/", 1)[-1]
    return f"renew_{body['state']}" if last == "renew" else last


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plane: Plane

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/test":
            self._send(200, self.plane.control(body))
            return
        try:
            self._answer(body)
        except ConnectionError:
            self.close_connection = True  # whoever asked is dead

    def _answer(self, body: dict[str, Any]) -> None:
        plane, route = self.plane, find_route(self.path, body)
        kind = plane.strike(route)
        if kind in BEFORE:
            status, told = BEFORE[kind]
            self._send(status, told)
            return
        if kind is Kind.KILL_BEFORE:
            plane.kill_agent()
        elif kind is Kind.DELAY:
            time.sleep(DELAY_S)
        elif kind is Kind.HANG:
            plane.hang()
        if kind in (Kind.KILL_BEFORE, Kind.HANG):
            self.close_connection = True
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status, told = plane.act(route, self.path, body, token, self.connection)
        if kind is Kind.KILL_AFTER:
            plane.kill_agent()
        self._send(status, told, kind)

    def _send(self, status: int, told: dict[str, Any] | None, kind: Kind | None = None) -> None:
        whole = b"" if told is None else b"<html>" if "garbage" in told else json.dumps(told, default=vars).encode()
        if kind is Kind.LOST:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(whole) + (kind is Kind.PARTIAL)))
        self.end_headers()
        self.wfile.write(whole[: len(whole) // 2] if kind is Kind.PARTIAL else whole)
        self.close_connection = self.close_connection or kind is Kind.PARTIAL

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


BEFORE: dict[Kind | None, Reply] = {
    Kind.ERROR: (500, {"error": "struck"}),
    Kind.UNAUTHORIZED: (401, {"error": "struck"}),
    Kind.LIMITED: (429, {"error": "struck"}),
    Kind.GARBAGE: (200, {"garbage": True}),
}


def open_listener() -> socket.socket:
    """Where the plane will be; made before it is forked, so that its address is known."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    return listener


def serve_plane(listener: socket.socket, beat_file: Path) -> None:
    """Serve until killed."""
    plane = Plane(beat_file)
    handler = type("Handler", (_Handler,), {"plane": plane})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.daemon_threads = True
    plane.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.serve_forever()


def tell_plane(port: int, **order: Any) -> dict[str, Any]:
    """One word with the plane, and what it knows then."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/test", json.dumps(order))
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()
