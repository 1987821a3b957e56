"""Run as a program: one agent's half of a guest link, to be killed with SIGKILL at any moment.

`python -m tests.native.killed_host LINK FOLDER SCRIPT` where FOLDER holds what outlives it: the nonce, the output of
both streams and, once the guest told it, the exit. With a SCRIPT it hands over that job, without one it adopts.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import trio

from nimbus.host_agent.guest import GuestSession
from nimbus.model.vm import GuestExit
from tests.native.guest_double import Host, Sink, shell

STREAMS = ("stdout", "stderr")


class DurableHost(Host):
    """Keeps the exit, and says that it saw the command's start, in files."""

    def __init__(self, folder: Path, sink: Sink) -> None:
        super().__init__(sink, on_event=lambda event: (folder / type(event).__name__).touch())
        self._folder = folder

    async def save(self, told: GuestExit) -> None:
        with (self._folder / "exits").open("a") as file:
            file.write(f"{told.status}\n")
        await super().save(told)


def main(link: str, folder: Path, script: str | None) -> None:
    files = {stream: (folder / stream).open("ab", buffering=0) for stream in STREAMS}
    ends = {stream: os.fstat(file.fileno()).st_size for stream, file in files.items()}

    def keep(stream: str, data: bytes) -> None:
        files[stream].write(data)

    host = DurableHost(folder, Sink(0, keep, ends=dict(ends)))
    session = GuestSession(
        bytes.fromhex((folder / "nonce").read_text()),
        None if script is None else shell(script),
        next_offsets=(ends["stdout"], ends["stderr"]),
    )
    trio.run(host.run, session, partial(trio.open_unix_socket, link))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
