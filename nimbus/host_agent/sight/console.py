"""The serial console of a VM, wherever its end is kept: with its keeper, in its folder, or among the post-mortems.

Reads only; bytes are the guest's and hostile, and whoever shows them makes them harmless. Called by `nimbus vms logs`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import trio

from nimbus.host_agent.keeper import Keeper, KeeperGone, connect_keeper
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.plan import HostLayout, VmPaths
from nimbus.host_agent.postmortem import read_postmortem
from nimbus.model.errors import NotFound
from nimbus.model.ids import VmId
from nimbus.model.record import Record
from nimbus.wire.keeper import CONSOLE_NAME, EXIT_NAME, RING_BYTES, ConsoleChunk, parse_exit

LOOK_EVERY_S = 0.25  # a keeper answers and never calls


async def read_console(
    layout: HostLayout, vm: VmId, record: Record | None, *, follow: bool
) -> AsyncGenerator[ConsoleChunk, None]:
    """The console's end, and with `follow` what comes until the VM ends. NotFound where nothing of it is kept.

    A chunk that starts later than the one before ended tells of bytes that nobody has any more.
    """
    offset = 0
    if record is not None and record.keeper is not None:
        try:
            async with await connect_keeper(_folder(layout, vm), record.keeper) as keeper:
                async for chunk in _ask(keeper, follow):
                    offset = chunk.start + len(chunk.data)
                    yield chunk
                return
        except KeeperGone:
            pass  # it has left the end of the console in the VM's folder, from where on we go on
    tail = await in_thread(partial(_read_kept, layout, vm))
    if tail is None:
        if offset == 0:
            raise NotFound(f"no console of VM {vm} is kept on this host: `nimbus vms list` shows those that live")
        return
    new = tail.data[max(0, offset - tail.start) :]
    if new:
        yield ConsoleChunk(max(offset, tail.start), tail.total, new)


async def _ask(keeper: Keeper, follow: bool) -> AsyncGenerator[ConsoleChunk, None]:
    """From the oldest byte of the ring on; without `follow`, up to what was printed when this began."""
    offset, goal = 0, (await keeper.status()).console_total
    while follow or offset < goal:
        chunk = await keeper.console(offset)
        offset = chunk.start + len(chunk.data)
        if chunk.data:
            yield chunk
        elif follow:
            await trio.sleep(LOOK_EVERY_S)
        else:
            return


def _read_kept(layout: HostLayout, vm: VmId) -> ConsoleChunk | None:
    """What is left of a console whose keeper is gone. Without the keeper's last word it counts from 0."""
    folder = _folder(layout, vm)
    try:
        data = (folder / CONSOLE_NAME).read_bytes()[-RING_BYTES:]
    except FileNotFoundError:
        try:
            data = read_postmortem(layout.postmortems, vm).console
        except NotFound:
            return None
    total = max(_read_total(folder), len(data))
    return ConsoleChunk(total - len(data), total, data)


def _read_total(folder: Path) -> int:
    try:
        return parse_exit((folder / EXIT_NAME).read_bytes()).console_total
    except OSError:
        return 0


def _folder(layout: HostLayout, vm: VmId) -> Path:
    return VmPaths(layout.state / "vms" / str(vm)).folder
