"""The lease book over real HTTP, with a network between it and each agent that can be cut in either direction.

A request that is lost is never acted on, an answer that is lost is acted on and never sent; who waits for it waits
until the cut is healed or his own patience ends. Also a logging pipeline that keeps every row. One process, forked by
world.py, which talks to it at /test.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Command, Shape
from nimbus.wire import leaseapi
from nimbus.wire.leaseapi import FinishReply, Grant, GrantTimes, MachineKind, RenewReply, RunnerReply
from tests.faults.leasebook import Lease, LeaseBook, Request
from tests.faults.plane import FENCED, Reply, _is_open

POLL_S = 1.0  # a lease request is held open for so long at most
WAYS = ("requests", "replies", "both")  # what a cut loses


class LeasePlane:
    """The book, the network and the rows, behind one lock."""

    def __init__(self, ttl_s: float) -> None:
        self.url = ""
        self.lock = threading.Condition()
        self._ttl_s = ttl_s
        self._book = LeaseBook(ttl_s)
        self._argv: dict[int, tuple[str, ...]] = {}
        self._rows: dict[str, dict[int, str]] = {}  # "number-fence" -> seq -> stream and message
        self._clashes: list[str] = []
        self._cut: dict[str, str] = {}

    # --- the test's own words -----------------------------------------------------------------------------------

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        """What the machine tells and asks."""
        now = time.monotonic()
        with self.lock:
            told: dict[str, Any] = {}
            if "reset" in order:
                self._book, self._argv, self._rows, self._clashes = LeaseBook(self._ttl_s), {}, {}, []
                self._cut.clear()
            if "submit" in order:
                self._argv[order["submit"]] = tuple(order["argv"])
                self._book.submit(order["submit"])
            if "lose" in order:
                told["fence"] = self._book.lose(order["lose"], now)
            if "cut" in order:
                self._cut[order["cut"]] = order["way"]
            if "heal" in order:
                self._cut.pop(order["heal"], None)
            over = self._book.is_over(now)
            self.lock.notify_all()
            return {
                **told,
                **self._book.render(),
                "at": now,
                "over": over,
                "rows": self._rows,
                "clashes": self._clashes,
            }

    # --- the network --------------------------------------------------------------------------------------------

    def loses(self, agent: str, ways: tuple[str, ...], peer: socket.socket) -> bool:
        """Whether what travels now is lost. Then returns only when the cut is healed, or nobody waits any more."""
        with self.lock:
            if self._cut.get(agent) not in ways:
                return False
            while agent in self._cut and _is_open(peer):
                self.lock.wait(0.2)
            return True

    def note_heard(self, lease: Lease, at: float) -> None:
        """The answer to a renewal that came at `at` was sent."""
        with self.lock:
            lease.heard.append(at)

    # --- the protocol -------------------------------------------------------------------------------------------

    def act(self, path: str, body: bytes, agent: str, peer: socket.socket) -> tuple[Reply, Lease | None]:
        """What the real one would do; with it the lease that was renewed."""
        route, now = path.rsplit("/", 1)[-1], time.monotonic()
        if route == "lease":
            return self._lease(agent, peer), None
        with self.lock:
            if route == "enrol":
                return self._enrol(agent, body, now), None
            machine_id = int(path.split("/")[3])
            if route == "renew":
                renewed = self._book.renew(agent, leaseapi.parse_renew_request(body, machine_id), now)
                reply = leaseapi.render_renew_reply(RenewReply(self._ttl_s, cancel=False))
                return ((200, reply) if renewed else FENCED), renewed
            if route == "runner":
                key = leaseapi.parse_runner_request(body, machine_id)
                return self._mint(agent, key, now), None
            state = self._book.finish(agent, leaseapi.parse_finish_request(body, machine_id), json.loads(body), now)
            self.lock.notify_all()
            return (FENCED if state is None else (200, leaseapi.render_finish_reply(FinishReply(state)))), None

    def _enrol(self, agent: str, body: bytes, now: float) -> Reply:
        self._book.enrol(agent, leaseapi.parse_enrol_request(body), now)
        self.lock.notify_all()
        return 200, {"token": agent, "expires_in_s": 3600, "agent_id": agent, "lease_ttl_s": self._ttl_s}

    def _mint(self, agent: str, key: LeaseKey, now: float) -> Reply:
        if not self._book.may_mint(agent, key, now):
            return FENCED
        return 200, leaseapi.render_runner_reply(RunnerReply(f"runner-{key.machine_id}", self._job(key), {}))

    def _job(self, key: LeaseKey) -> tuple[str, ...]:
        return tuple(word.replace("FENCE", str(key.fence)) for word in self._argv[key.machine_id])

    def _lease(self, agent: str, peer: socket.socket) -> Reply:
        deadline = time.monotonic() + POLL_S
        with self.lock:
            while True:
                granted = self._book.grant(agent, time.monotonic()) if _is_open(peer) else None
                if granted is not None:
                    return 200, leaseapi.render_grant(self._describe(*granted))
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return 204, None
                self.lock.wait(min(left_s, 0.2))

    def _describe(self, request: Request, lease: Lease) -> Grant:
        key = LeaseKey(request.number, lease.lease_id, lease.fence)
        command = Command(self._job(key)) if request.kind is MachineKind.COMMAND else None
        now_ms = time.time_ns() // 1_000_000
        times = GrantTimes(None, now_ms, now_ms)
        where, token = f"{self.url}/ingest", f"{lease.agent} {request.number}-{lease.fence}"
        return Grant(key, self._ttl_s, 1, request.kind, Shape(), "none", ("nimbus",), command, where, token, times)

    def ingest(self, machine: str, body: bytes) -> Reply:
        """Keeps every row; one that comes again must be the same."""
        with self.lock:
            rows = self._rows.setdefault(machine, {})
            told = json.loads(body)["rows"]
            for row in told:
                line = f"{row['stream']} {row['message']}".strip()
                if rows.setdefault(row["seq"], line) != line:
                    self._clashes.append(f"row {row['seq']} of {machine} came twice and differently")
            return 200, {"stored": len(told), "refused": []}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plane: LeasePlane

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if self.path == "/test":
                self._send((200, self.plane.control(json.loads(body))))
            else:
                self._answer(body)
        except ConnectionError:
            self.close_connection = True  # whoever asked is dead

    def _answer(self, body: bytes) -> None:
        plane, at = self.plane, time.monotonic()
        agent, _, machine = self.headers.get("Authorization", "").removeprefix("Bearer ").partition(" ")
        if plane.loses(agent, ("requests", "both"), self.connection):
            self.close_connection = True
            return
        reply, renewed = (
            (plane.ingest(machine, body), None) if machine else plane.act(self.path, body, agent, self.connection)
        )
        if plane.loses(agent, ("replies", "both"), self.connection):
            self.close_connection = True
            return
        if renewed is not None:
            plane.note_heard(renewed, at)
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        status, told = reply
        whole = b"" if told is None else json.dumps(told, default=vars).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def serve_leases(listener: socket.socket, ttl_s: float) -> None:
    """Serve until killed."""
    plane = LeasePlane(ttl_s)
    handler = type("Handler", (_Handler,), {"plane": plane})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.daemon_threads = True
    plane.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.serve_forever()
