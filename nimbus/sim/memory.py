"""The file in which the fake GitHub keeps its world, so that it knows its jobs after a SIGKILL, as GitHub would.

Each change is in the file before anybody is told of it: an answer to a change and a webhook wait for the write.
Changes that come during a write share the next one. No fsync: the page cache survives a SIGKILL, and a rehearsal
need not survive the host. Without a folder nothing is kept. `world.py` makes it, `app.py` runs the writer.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

import structlog

from nimbus.host.disk import write_atomically
from nimbus.model.errors import HostFault
from nimbus.model.job import JobState
from nimbus.runtime.threads import ThreadLane
from nimbus.sim.accounts import Accounts
from nimbus.sim.bell import Bell
from nimbus.sim.deliveries import Deliveries
from nimbus.sim.jobs import Run
from nimbus.sim.records import FORMAT, Header, Pen, Recalled, parse_world, record_account, restore_account
from nimbus.sim.registrations import Registrations

FILE = "world.jsonl"
# The whole file is written at each change: these limits keep it at a few MiB. What has not ended is kept always.
KEPT_ENDED_RUNS = 500
KEPT_SENT_DELIVERIES = 500

log = structlog.get_logger()


class Memory:
    """One world's file: read once, written after each change."""

    def __init__(
        self, folder: Path | None, accounts: Accounts, deliveries: Deliveries, registrations: Registrations
    ) -> None:
        self._folder = folder
        self._accounts = accounts
        self._deliveries = deliveries
        self._registrations = registrations
        self._pen = Pen()
        self._lane = ThreadLane("sim-memory", 1)
        self._noted, self._written = 0, 0  # how many changes there were, and how many of them the file holds
        self._data = b""  # of the file: a sweep that changed nothing writes nothing
        self._woken, self._done = Bell(), Bell()

    # -- reading ----------------------------------------------------------------------------------

    async def recall(self) -> None:
        """Take up the world of the file, if there is one. An unreadable one is kept aside and the world is new."""
        if self._folder is None:
            return
        found = await self._lane.run(_read, self._folder)
        if found is None:
            return
        try:
            recalled = parse_world(found)
            self._take_up(recalled)
        except ValueError as error:
            aside = await self._lane.run(_put_aside, self._folder)
            log.error("sim.memory_unreadable", file=str(self._folder / FILE), why=str(error), kept_as=str(aside))
            return
        log.info("sim.recalled", runs=len(recalled.runs), runners=len(recalled.runners))

    def _take_up(self, recalled: Recalled) -> None:
        header, accounts = recalled.header, self._accounts
        if header.owner != accounts.first.owner:
            raise ValueError(f"it is the world of {header.owner!r}, and this is {accounts.first.owner!r}")
        known = {record.owner.lower() for record in header.accounts} | {header.owner.lower()}
        owners = {run.repo.owner.lower() for run in recalled.runs}
        if not owners | {_owner(runner.scope) for runner in recalled.runners} <= known:
            raise ValueError("it holds runs or runners of nobody")
        for record in header.accounts:
            restore_account(accounts.recall(record.owner, record.installation_id), record)
        if header.suspended:
            accounts.first.suspended_at_s = time.time()
        for account in accounts:
            mine = account.owner.lower()
            runs = [run for run in recalled.runs if run.repo.owner.lower() == mine]
            runners = [runner for runner in recalled.runners if _owner(runner.scope) == mine]
            account.forge.take_up(header.last_id, runs, runners)
        self._deliveries.take_up(recalled.deliveries)
        self._registrations.take_up(header.registrations)

    # -- writing ----------------------------------------------------------------------------------

    def note(self) -> None:
        """Something may have changed."""
        self._noted += 1
        self._woken.ring()

    async def wait_written(self) -> None:
        """Until the file holds all that was noted by now."""
        noted = self._noted
        while self._folder is not None and self._written < noted:
            await self._done.wait()

    async def run_writer(self) -> None:
        """Write what was noted, for ever."""
        while True:
            while self._folder is not None and self._written < self._noted:
                await self._write(self._folder)
            await self._woken.wait()

    async def _write(self, folder: Path) -> None:
        noted, data = self._noted, self.render()
        if data != self._data:
            try:
                await self._lane.run(_write, folder, data)
                self._data = data
            except OSError as error:  # a rehearsal goes on without its memory; the next change tries again
                log.error("sim.memory_not_written", file=str(folder / FILE), why=error.strerror)
        self._written = noted
        self._done.ring()

    def render(self) -> bytes:
        """The file's bytes for the world as it is now."""
        accounts = self._accounts
        header = Header(
            FORMAT,
            accounts.first.owner,
            accounts.first.forge.last_id,
            accounts=tuple(record_account(account) for account in accounts),
            registrations=tuple(self._registrations.valid()),
        )
        runners = [runner for account in accounts for runner in account.forge.runners.values()]
        runs = sorted((run for account in accounts for run in account.forge.runs.values()), key=lambda run: run.run_id)
        kept = self._deliveries.pending_and_newest(KEPT_SENT_DELIVERIES)
        return self._pen.render(header, runners, _open_and_newest(runs), kept)


def _owner(scope: str) -> str:
    return scope.partition("/")[0].lower()


def _open_and_newest(runs: Collection[Run]) -> list[Run]:
    ended = [run.run_id for run in runs if run.state is JobState.COMPLETED]
    forgotten = set(ended[:-KEPT_ENDED_RUNS])
    return [run for run in runs if run.run_id not in forgotten]


def _read(folder: Path) -> bytes | None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for torn in folder.glob(f".{FILE}.*"):  # a SIGKILL came before it took the file's name
            torn.unlink()
        return (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostFault(f"NIMBUS_SIM_STATE_DIR: {folder} cannot be used: {error.strerror}") from error


def _put_aside(folder: Path) -> Path:
    aside = folder / f"{FILE}.unreadable-{time.time_ns()}"
    try:
        (folder / FILE).rename(aside)
    except OSError as error:
        raise HostFault(f"NIMBUS_SIM_STATE_DIR: {folder} cannot be used: {error.strerror}") from error
    return aside


def _write(folder: Path, data: bytes) -> None:
    write_atomically(folder / FILE, data, fsync=False)
