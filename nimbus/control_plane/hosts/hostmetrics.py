"""The hosts' Prometheus metrics of the control plane."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge


class HostMetrics:
    """Where hosts stand, and whether the copy of their ledgers can be written."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._states = Gauge("nimbus_control_plane_agents", "Hosts by where they stand", ["state"], registry=registry)
        self._seen = Gauge("nimbus_control_plane_agents_seen", "Hosts that are not silent", registry=registry)
        self.mirror_connected = Gauge(
            "nimbus_control_plane_mirror_connected",
            "1 while the copy of the hosts' ledgers can be written",
            registry=registry,
        )

    def note(self, states: Mapping[str, int], silent: str) -> None:
        """Bring them up to date; `silent` is the state of those that were not seen."""
        for state, count in states.items():
            self._states.labels(state).set(count)
        self._seen.set(sum(states.values()) - states[silent])
