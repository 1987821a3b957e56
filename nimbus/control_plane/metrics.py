"""The control plane's Prometheus metrics, under the documents' names. One registry for each application."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from nimbus.control_plane.github.metrics import GithubMetrics
from nimbus.control_plane.hosts.hostmetrics import HostMetrics
from nimbus.control_plane.keys.metrics import KeyMetrics


class Metrics:
    """Counted as gauges where the documented name carries no `_total`: the client would add it to a counter."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.hosts = HostMetrics(self.registry)
        self.github = GithubMetrics(self.registry)
        self.keys = KeyMetrics(self.registry)
        self._add_demand()
        self._add_leases()
        self._add_repair()

    def _add_demand(self) -> None:
        self.webhook_replays_blocked = self._gauge(
            "nimbus_control_plane_webhook_replays_blocked", "Deliveries that came again and changed nothing"
        )
        self.deliveries = Counter(
            "nimbus_control_plane_deliveries_total",
            "Deliveries that came into a state",
            ["state"],
            registry=self.registry,
        )
        self.deliveries_refused = Counter(
            "nimbus_control_plane_deliveries_refused_total", "Deliveries not stored", ["reason"], registry=self.registry
        )
        self.deliveries_unfinished = Gauge(
            "nimbus_control_plane_deliveries_unfinished", "Deliveries in the inbox", ["state"], registry=self.registry
        )
        self.delivery_oldest_s = self._gauge(
            "nimbus_control_plane_delivery_oldest_seconds", "Age of the oldest delivery that is still to be processed"
        )
        self.org_rate_limits_hit = self._gauge(
            "nimbus_control_plane_org_rate_limits_hit", "Submissions refused and jobs kept: their org asks for too many"
        )
        self.limiter_without_redis = self._gauge(
            "nimbus_control_plane_limiter_without_redis", "1 while rates are limited without Redis"
        )
        self.drift = Gauge(
            "nimbus_control_plane_drift", "Steps of jobs that no webhook told", ["source"], registry=self.registry
        )

    def _add_leases(self) -> None:
        self.bell_connected = self._gauge(
            "nimbus_control_plane_bell_connected", "1 while rings travel between processes; else agents wait for looks"
        )
        self.agents_waiting = self._gauge("nimbus_control_plane_agents_waiting", "Polls for work that wait here")
        self.queue_looks = Counter(
            "nimbus_control_plane_queue_looks_total", "Looks into the queue for waiting agents", registry=self.registry
        )
        self.agents_woken = Counter(
            "nimbus_control_plane_agents_woken_total",
            "Waiting agents woken for a request, by what they then leased",
            ["leased"],
            registry=self.registry,
        )
        self.leases_granted = self._gauge("nimbus_control_plane_leases_granted", "Machine requests handed to an agent")
        self.hosts_reserved = self._gauge(
            "nimbus_control_plane_hosts_reserved", "Times that a host began to make room for what had waited too long"
        )
        self.leases_fenced = self._gauge("nimbus_control_plane_leases_fenced", "Writes refused by lease, fence or time")
        self.leases_expired = self._gauge("nimbus_control_plane_leases_expired", "Leases whose holder fell silent")
        self.grants_paused = self._gauge(
            "nimbus_control_plane_grants_paused", "1 while nothing is granted: the database or its clock has changed"
        )
        self.machines = Gauge(
            "nimbus_control_plane_machines", "Machine requests by state", ["state"], registry=self.registry
        )

    def _add_repair(self) -> None:
        self.forge_problems = Gauge(
            "nimbus_control_plane_forge_problems", "What GitHub refuses us now", ["kind"], registry=self.registry
        )
        self.runners_removed = Counter(
            "nimbus_control_plane_runners_removed_total",
            "Runners ended before a job's end",
            ["why"],
            registry=self.registry,
        )
        self.redeliveries_asked = self._gauge(
            "nimbus_control_plane_redeliveries_asked", "Deliveries that GitHub was asked to send again"
        )
        self.polls = self._gauge("nimbus_control_plane_polls", "Repositories whose jobs were asked for")
        self.jobs_found_by_poll = self._gauge(
            "nimbus_control_plane_jobs_found_by_poll", "Steps of jobs that no webhook told of before a poll did"
        )
        self.duty_age = Gauge(
            "nimbus_control_plane_duty_age_seconds",
            "Seconds since a duty was last done, by any process",
            ["duty"],
            registry=self.registry,
        )

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(name, documentation, registry=self.registry)

    def render(self) -> bytes:
        return generate_latest(self.registry)
