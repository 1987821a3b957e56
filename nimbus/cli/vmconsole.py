"""`nimbus vms logs`: the serial console of one VM on a terminal; host_agent/sight/console.py knows where it is kept.

A console is hostile text: what could drive the terminal is taken out, colours stay.
"""

from __future__ import annotations

import codecs
import sys
from contextlib import aclosing

import click
import trio

from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.settings import HostSettings, plan_layout, read_settings
from nimbus.host_agent.sight.console import read_console
from nimbus.host_agent.sight.standing import look_at
from nimbus.model.ids import VmId
from nimbus.wire.terminaltext import show_line

MAX_LINE_CHARS = 8192  # a guest that never ends its line is shown in pieces


class Lines:
    """Bytes in, harmless lines out; an unfinished one waits for its end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """What can be shown now."""
        *whole, self._rest = (self._rest + self._decoder.decode(data, final)).split("\n")
        if final or len(self._rest) > MAX_LINE_CHARS:
            whole, self._rest = ([*whole, self._rest] if self._rest else whole), ""
        return "".join(f"{show_line(line)}\n" for line in whole)


@click.command()
@click.argument("vm")
@click.option("--follow", "-f", is_flag=True, help="Go on until the VM ends.")
def logs(vm: str, follow: bool) -> None:
    """Show the end of a VM's serial console: at most 64 KiB, of a live one or of one that has ended.

    \b
    nimbus vms logs 1f2e3d4c             what its kernel and PID 1 printed
    nimbus vms logs 1f2e3d4c --follow

    It is not the job's output: `nimbus logs --job-id N` shows that.
    """
    layout = plan_layout(read_settings(HostSettings))
    trio.run(_show, layout, VmId(vm), follow)


async def _show(layout: HostLayout, vm: VmId, follow: bool) -> None:
    sight = look_at(Ledger(layout.ledger), vm)
    lines, seen = Lines(), 0
    async with aclosing(read_console(layout, vm, sight.record if sight else None, follow=follow)) as chunks:
        async for chunk in chunks:
            if chunk.start > seen:
                sys.stdout.flush()
                click.echo(f"nimbus: {chunk.start - seen} bytes before this are not kept", err=True)
            seen = chunk.start + len(chunk.data)
            sys.stdout.write(lines.feed(chunk.data))
            sys.stdout.flush()
    sys.stdout.write(lines.feed(b"", final=True))
    sys.stdout.flush()
