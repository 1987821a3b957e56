"""What the GitHub client counts for Prometheus: calls, waits, refusals, and whether GitHub is there at all.

`metrics.py` holds one; `github/transport.py` tells it. Names are in docs/operations.md.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from nimbus.control_plane.github.limits import Purpose
from nimbus.model.forge import ProblemKind


class GithubMetrics:
    """The observer of one client."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "nimbus_control_plane_github_calls_total",
            "Requests to GitHub's API by route and status; lost ones got no answer",
            ["route", "status"],
            registry=registry,
        )
        self._waits = Counter(
            "nimbus_control_plane_github_wait_seconds_total",
            "Time that calls to GitHub stood in our own queue",
            ["purpose"],
            registry=registry,
        )
        self._refusals = Counter(
            "nimbus_control_plane_github_refusals_total",
            "Calls that GitHub, or our own limits, refused",
            ["kind"],
            registry=registry,
        )
        self._away = Gauge(
            "nimbus_control_plane_github_away",
            "1 while calls are not made because GitHub failed several times in a row",
            registry=registry,
        )

    def called(self, route: str, status: str) -> None:
        self._calls.labels(route, status).inc()

    def waited(self, purpose: Purpose, wait_s: float) -> None:
        self._waits.labels(str(purpose)).inc(max(0.0, wait_s))

    def refused(self, kind: ProblemKind) -> None:
        self._refusals.labels(str(kind)).inc()

    def breaker_changed(self, is_open: bool) -> None:
        self._away.set(int(is_open))
