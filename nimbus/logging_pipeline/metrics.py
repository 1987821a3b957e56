"""The logging pipeline's Prometheus metrics. One registry for each application."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """What happened to rows, and who reads along."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.stored = self._counter("nimbus_logs_rows_stored", "Rows stored")
        self.repeated = self._counter("nimbus_logs_rows_repeated", "Rows that came again and were passed over")
        self.refused = self._counter("nimbus_logs_rows_refused", "Rows that could not be taken as they came")
        self.failures = self._counter("nimbus_logs_insert_failures", "Inserts whose outcome was not certain")
        self.masked = Counter(
            "nimbus_logs_masked", "Rows in which something was hidden", ["by"], registry=self.registry
        )
        self.masks_missing = self._counter(
            "nimbus_logs_masks_missing", "Requests taken though their org's registered secrets were never fetched"
        )
        self.insert_seconds = Histogram("nimbus_logs_insert_seconds", "Time of one insert", registry=self.registry)
        self.followers = Gauge("nimbus_logs_followers", "Readers that follow output now", registry=self.registry)
        self.relay_up = Gauge(
            "nimbus_logs_relay_up", "1 while other replicas are heard, or where there are none", registry=self.registry
        )
        self.tail_resyncs = self._counter("nimbus_logs_tail_resyncs", "Streams that fell behind and read the store")
        self.tail_gaps = self._counter("nimbus_logs_tail_gaps", "Holes that a stream told its reader of")
        self.tail_ends = Counter("nimbus_logs_tail_ends", "Streams that ended", ["why"], registry=self.registry)
        self.store_up = Gauge(
            "nimbus_logs_store_up", "1 while the log store takes and gives rows", registry=self.registry
        )
        self.trouble = Counter(
            "nimbus_logs_store_trouble", "Calls of the log store that failed", ["kind"], registry=self.registry
        )

    def note_masked(self, kind: str, rows: int) -> None:
        self.masked.labels(kind).inc(rows)

    def note_trouble(self, kind: str) -> None:
        self.trouble.labels(kind).inc()

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(name, documentation, registry=self.registry)

    def render(self) -> bytes:
        return generate_latest(self.registry)
