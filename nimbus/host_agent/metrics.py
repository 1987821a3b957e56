"""The agent's Prometheus metrics on loopback, served by the standard tiny ASGI app.

Counts what happened; decides nothing. Names are those of the documents.
"""

from __future__ import annotations

import trio
from hypercorn.config import Config
from prometheus_client import Counter, Gauge, Histogram, make_asgi_app

from nimbus.host_agent.reaper import ReapReport
from nimbus.model.vm import Ending
from nimbus.runtime.listening import start_hypercorn
from nimbus.wire.leaseapi import FinishRequest

MACHINES = Counter("nimbus_host_agent_machines_total", "Machines by how they ended", ["ending"])
JOB_TIMEOUTS = Counter("nimbus_host_agent_job_timeouts_total", "Jobs that ran out of time")
LEASE_ERRORS = Counter("nimbus_host_agent_lease_errors_total", "Lease requests that failed")
RUNNING = Gauge("nimbus_host_agent_machines_running", "Machines alive on this host now")
STUCK = Gauge("nimbus_host_agent_claims_stuck", "VMs whose teardown could not be completed")
BOOT_SECONDS = Histogram("nimbus_host_agent_boot_seconds", "From the guest kernel's start to the guest being ready")


def count_end(told: FinishRequest) -> None:
    """One machine's end, by its word, with how long its guest took to come up."""
    MACHINES.labels(told.ending).inc()
    if told.ending is Ending.TIMED_OUT:
        JOB_TIMEOUTS.inc()
    if "kernel" in told.phases_ms:
        BOOT_SECONDS.observe((told.phases_ms["kernel"] + told.phases_ms.get("init", 0.0)) / 1000)


def count_stuck(report: ReapReport) -> None:
    """How many VMs the last round could not clear away."""
    STUCK.set(len(report.stuck))


async def serve_metrics(host: str, port: int, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve `/metrics` until cancelled; hands over the address."""
    config = Config()
    config.bind = [f"{host}:{port}"]
    config.accesslog = None
    config.errorlog = None
    app = make_asgi_app()
    async with trio.open_nursery() as nursery:
        binds = await start_hypercorn(nursery, app, config, trio.sleep_forever, "NIMBUS_AGENT_METRICS_PORT")
        task_status.started(binds[0])
        await trio.sleep_forever()
