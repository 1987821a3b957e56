"""The keys' Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from nimbus.control_plane.keys.ring import KeyRing, Purpose


class KeyMetrics:
    """How old the keys that sign are: where that grows beyond the interval, they are not rotated."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.age = Gauge(
            "nimbus_control_plane_signing_key_age_seconds",
            "Seconds since the current key began to sign",
            ["family"],
            registry=registry,
        )

    def note(self, ring: KeyRing) -> None:
        """Bring it up to date."""
        for purpose in Purpose:
            current = ring.find_current(purpose)
            if current is not None:
                self.age.labels(purpose).set(max(ring.now_s - current.signs_from_s, 0.0))
