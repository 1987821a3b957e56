"""What the logging pipeline's routes work with: opened by app.py, passed down, never global."""

from __future__ import annotations

from dataclasses import dataclass

from nimbus.logging_pipeline.access import Access
from nimbus.logging_pipeline.directory import Directory
from nimbus.logging_pipeline.ingest.masknet import MaskNet
from nimbus.logging_pipeline.ingest.writer import Writer
from nimbus.logging_pipeline.live.follow import Surroundings
from nimbus.logging_pipeline.live.hub import Hub
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.reading.turns import Turns
from nimbus.logging_pipeline.store.bounds import ReadBounds
from nimbus.logging_pipeline.store.table import LogTable


@dataclass(frozen=True)
class Services:
    """Everything with a lifetime."""

    table: LogTable
    bounds: ReadBounds
    turns: Turns
    masknet: MaskNet
    writer: Writer
    hub: Hub
    directory: Directory
    access: Access
    metrics: Metrics
    tails: Surroundings
