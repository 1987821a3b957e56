"""A conversation with Firecracker's API: one call at a time, each within its limit, each answer checked.

Every call has a connection of its own: it costs tens of microseconds, and nothing of one answer can be taken for the
next. Knows no VM and retries nothing: a call that failed may have been carried out. Called by vmm/firecracker.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trio

from nimbus.host_agent.vmm.sockets import connect_unix
from nimbus.model.errors import HostFault, Refused
from nimbus.wire.fcanswers import InstanceInfo, parse_config, parse_fault, parse_instance, parse_version_answer
from nimbus.wire.fchttp import Answer, Exchange
from nimbus.wire.firecracker import (
    ApiCall,
    ApiRefused,
    Json,
    Version,
    ask_config,
    ask_version,
    describe_instance,
)

_LOOK_FIRST_S, _LOOK_MOST_S = 0.001, 0.02
_RECEIVE_BYTES = 16 * 1024
_SLOW_PATHS = frozenset({"/vm", "/snapshot/create", "/snapshot/load"})  # these wait for vCPUs or for disks


@dataclass(frozen=True)
class CallLimits:
    """How long Firecracker may take. It answers in milliseconds; one that is stopped or wedged never does."""

    quick_s: float = 10.0  # upstream fails its own tests at 0.7 s; a host at its limits is slower
    slow_s: float = 45.0  # Firecracker itself gives a vCPU 30 s to stop

    def of(self, call: ApiCall) -> float:
        return self.slow_s if call.path in _SLOW_PATHS else self.quick_s


class ApiClient:
    """The API behind one socket, which belongs to a VM's uid."""

    def __init__(self, path: Path, limits: CallLimits | None = None) -> None:
        self._path = path
        self._limits = limits or CallLimits()
        self._turn = trio.Lock()  # Firecracker serves one call at a time: waiting for our own is not its slowness

    async def wait_ready(self, instance_id: str, limit_s: float) -> InstanceInfo:
        """Until the API answers, as the instance that was started. Raises HostFault."""
        why: OSError | None = None
        with trio.move_on_after(limit_s):
            wait_s = _LOOK_FIRST_S
            while True:
                try:
                    stream = await connect_unix(self._path)
                    break
                except OSError as error:
                    why = error
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 1.2, _LOOK_MOST_S)
            answer = await _talk(stream, Exchange(describe_instance()), describe_instance())
            info = parse_instance(_require_ok(describe_instance(), answer).body)
            if info.id != instance_id:
                raise HostFault(f"the Firecracker that answers is {info.id!r}, and {instance_id!r} was started")
            return info
        said = f": {why.strerror}" if why is not None else ""
        raise HostFault(f"Firecracker's API did not answer in {limit_s:g} s{said}")

    async def instance(self) -> InstanceInfo:
        return parse_instance((await self.ask(describe_instance())).body)

    async def version(self) -> Version:
        return parse_version_answer((await self.ask(ask_version())).body)

    async def config(self) -> Json:
        """All that the VM is configured with."""
        return parse_config((await self.ask(ask_config())).body)

    async def ask(self, call: ApiCall) -> Answer:
        """The answer of a call that was carried out.

        Raises ApiRefused with Firecracker's own word, Refused where a job's metadata is too large, and HostFault where
        the VMM is dead, gives no answer in time, or gives one that makes no sense.
        """
        exchange = Exchange(call)
        async with self._turn:
            limit_s = self._limits.of(call)
            answer = None
            with trio.move_on_after(limit_s):
                answer = await self._connect_and_talk(call, exchange)
        if answer is None:
            raise HostFault(f"Firecracker gave no answer to {call} in {limit_s:g} s")
        return _require_ok(call, answer)

    async def _connect_and_talk(self, call: ApiCall, exchange: Exchange) -> Answer:
        try:
            stream = await connect_unix(self._path)
        except OSError as error:
            raise HostFault(f"the VMM is dead before {call}: {error.strerror}") from error
        return await _talk(stream, exchange, call)


async def _talk(stream: trio.SocketStream, exchange: Exchange, call: ApiCall) -> Answer:
    try:
        await stream.send_all(exchange.request)
        while (answer := exchange.feed(bytes(await stream.receive_some(_RECEIVE_BYTES)))) is None:
            pass
    except trio.BrokenResourceError as error:
        raise HostFault(f"the VMM died during {call}") from error
    finally:
        stream.socket.close()  # not aclose, which is a checkpoint: what was answered must not be lost to a limit
    return answer


def _require_ok(call: ApiCall, answer: Answer) -> Answer:
    if answer.ok:
        return answer
    fault = parse_fault(answer.body)
    if answer.status == 413 and call.path == "/mmds":
        raise Refused(f"the job's metadata is too large: {fault}")
    raise ApiRefused(call, answer.status, fault)
