"""What a request asks for, as a scope that its reader may see: ids, cursors and limits read from the request.

A job of another org does not exist for the reader. Every id is a number. Called by the read routes and the streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from quart import request

from nimbus.logging_pipeline.directory import JobEntry
from nimbus.logging_pipeline.reading.cursor import check_cursor, parse_cursor
from nimbus.logging_pipeline.rows import Place, ReadScope
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.tickets import Reader
from nimbus.model.errors import NotFound, Refused
from nimbus.wire.fields import MAX_BIGINT

DEFAULT_ROWS, MAX_ROWS = 200, 10_000  # a few screens: what is asked for without a number is to be there at once
Ask = Callable[[], Awaitable[JobEntry]]


def ask_for_job(services: Services, reader: Reader, job: str) -> Ask:
    """How to ask for that job, as often as wanted. Refused where it is no number; asked, NotFound for another org's."""
    return partial(services.directory.job, read_id(job), reader.org_id)


def scope_of(entry: JobEntry) -> ReadScope:
    """All that the machines of a job printed."""
    return ReadScope(entry.org_id, tuple(sorted({machine.machine_id for machine in entry.machines})))


async def find_machine_scope(services: Services, reader: Reader, machine: str) -> ReadScope:
    """A machine of the reader's org. One that never printed and one of another org look the same."""
    machine_id = read_id(machine)
    text = request.args.get("fence")
    fence = None if text is None else read_id(text, "fence")
    org_id = reader.org_id if reader.org_id is not None else await services.table.org_of(machine_id)
    if org_id is None:
        raise NotFound(f"no output of machine {machine_id} is stored")
    return ReadScope(org_id, (machine_id,), fence)


def read_places(scope: ReadScope, text: str | None) -> tuple[Place, ...]:
    """Where the reader goes on; Refused for a cursor that is none, Forbidden for one of other output."""
    places = parse_cursor(text)
    check_cursor(places, scope.machines)
    return places


def read_place(scope: ReadScope, text: str) -> Place:
    """One place, from which a reader goes back."""
    places = read_places(scope, text)
    if len(places) != 1:
        raise Refused("before and around take the `prev` of a page or the cursor of one row, unchanged")
    return places[0]


def read_id(text: str, name: str = "id") -> int:
    """An id as it stands in a path or a query; Refused where it is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MAX_BIGINT):
        raise Refused(f"the {name} must be a whole number")
    return int(text)


def read_limit() -> int:
    """How many rows at most."""
    return read_number("limit", DEFAULT_ROWS)


def read_number(name: str, default: int | None = None, most: int = MAX_ROWS) -> int:
    """A number of rows from the query."""
    text = request.args.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= most):
        raise Refused(f"{name} must be a whole number from 1 to {most}")
    return int(text)
