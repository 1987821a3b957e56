"""vmm/fcapi.py against a socket whose every word the test writes: slow, dying, lying and refusing VMMs."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.vmm.fcapi import ApiClient, CallLimits
from nimbus.model.errors import HostFault, Refused
from nimbus.wire.fcanswers import InstanceInfo
from nimbus.wire.firecracker import ApiRefused, Version, pause_vm, put_metadata, start_instance

LIMIT_S = 30.0
DONE = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
Say = Callable[[trio.SocketStream], Awaitable[None]]


def told(status: int, value: object) -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 {status} \r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def instance(name: str) -> bytes:
    return told(200, {"id": name, "state": "Not started", "vmm_version": "1.16.1", "app_name": "Firecracker"})


def saying(*pieces: bytes) -> Say:
    async def say(stream: trio.SocketStream) -> None:
        await stream.receive_some(100_000)
        for piece in pieces:
            await stream.send_all(piece)
            await trio.lowlevel.checkpoint()

    return say


async def say_nothing(stream: trio.SocketStream) -> None:
    while await stream.receive_some(100_000):
        pass


async def open_listener(path: Path) -> trio.SocketListener:
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    return trio.SocketListener(sock)


@asynccontextmanager
async def open_api(path: Path, say: Say) -> AsyncIterator[ApiClient]:
    """A client of a VMM that says this on each connection and hangs up."""
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, _closing(say), [await open_listener(path)])
        with trio.fail_after(LIMIT_S):
            yield ApiClient(path)
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


def _closing(say: Say) -> Say:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await say(stream)

    return serve


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A socket whose path is longer than sun_path, in a folder that is reached by a short one."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    return deep / "api.sock"


@asynccontextmanager
async def open_deep_api(path: Path, say: Say) -> AsyncIterator[ApiClient]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        async with open_api(Path(f"/proc/self/fd/{folder}") / path.name, say):
            yield ApiClient(path)
    finally:
        os.close(folder)


async def test_a_call_that_was_carried_out_is_answered_over_a_path_too_long_for_a_socket(path: Path) -> None:
    async with open_deep_api(path, saying(DONE[:7], DONE[7:])) as api:
        answer = await api.ask(pause_vm())
    assert answer.status == 204


async def test_a_refusal_comes_with_the_call_and_firecrackers_own_words(tmp_path: Path) -> None:
    async with open_api(tmp_path / "s", saying(told(400, {"fault_message": "Not today."}))) as api:
        with pytest.raises(ApiRefused, match=r"Firecracker refused PATCH /vm: Not today\.") as caught:
            await api.ask(pause_vm())
    assert (caught.value.fault, caught.value.status, caught.value.call) == ("Not today.", 400, pause_vm())


async def test_metadata_beyond_the_limit_is_the_callers_to_change(tmp_path: Path) -> None:
    async with open_api(tmp_path / "s", saying(told(413, {"fault_message": "full"}))) as api:
        with pytest.raises(Refused, match="metadata is too large: full"):
            await api.ask(put_metadata({}))


@pytest.mark.parametrize("pieces", [(), (DONE[:20],), (told(200, {"id": "x"})[:-1],)])
async def test_a_vmm_that_hangs_up_before_its_answers_end_died_during_the_call(
    tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    async with open_api(tmp_path / "s", saying(*pieces)) as api:
        with pytest.raises(HostFault, match="the VMM died during PUT /actions"):
            await api.ask(start_instance())


async def test_a_vmm_that_is_gone_is_told_before_the_call(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match="the VMM is dead before PUT /actions"):
        await ApiClient(tmp_path / "none").ask(start_instance())


async def test_a_vmm_that_never_answers_fails_the_call_by_name(tmp_path: Path) -> None:
    async with open_api(tmp_path / "s", say_nothing):
        api = ApiClient(tmp_path / "s", CallLimits(quick_s=0.05, slow_s=0.06))
        with pytest.raises(HostFault, match=r"no answer to PUT /actions in 0\.05 s"):
            await api.ask(start_instance())
        with pytest.raises(HostFault, match=r"no answer to PATCH /vm in 0\.06 s"):
            await api.ask(pause_vm())


async def test_calls_of_two_tasks_are_made_one_after_the_other(tmp_path: Path) -> None:
    open_now, most = 0, 0

    async def count(stream: trio.SocketStream) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await stream.receive_some(100_000)
        await trio.testing.wait_all_tasks_blocked()
        open_now -= 1
        await stream.send_all(DONE)

    async with open_api(tmp_path / "s", count) as api, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(api.ask, pause_vm())
    assert most == 1


async def test_a_call_that_was_given_up_does_not_block_the_next(tmp_path: Path) -> None:
    answers = iter([say_nothing, saying(DONE)])

    async def say(stream: trio.SocketStream) -> None:
        await next(answers)(stream)

    async with open_api(tmp_path / "s", say) as api:
        with trio.move_on_after(0.05) as scope:
            await api.ask(pause_vm())
        assert scope.cancelled_caught
        assert (await api.ask(pause_vm())).ok


async def test_an_api_is_waited_for_while_its_socket_is_not_there(tmp_path: Path) -> None:
    infos: list[InstanceInfo] = []
    ready = trio.Event()

    async def wait() -> None:
        infos.append(await ApiClient(tmp_path / "s").wait_ready("nb1-1", LIMIT_S))
        ready.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        async with open_api(tmp_path / "s", saying(instance("nb1-1"))):
            await ready.wait()
    assert infos == [InstanceInfo("nb1-1", "Not started", Version(1, 16, 1))]


async def test_an_api_of_another_instance_than_the_one_started_is_the_hosts_fault(tmp_path: Path) -> None:
    async with open_api(tmp_path / "s", saying(instance("nb1-1"))) as api:
        with pytest.raises(HostFault, match="'nb1-1', and 'nb2-2' was started"):
            await api.wait_ready("nb2-2", LIMIT_S)


@pytest.mark.parametrize("stale", [False, True])
async def test_an_api_that_never_comes_is_given_up_with_the_reason(tmp_path: Path, stale: bool) -> None:
    if stale:
        await (await open_listener(tmp_path / "s")).aclose()
    with pytest.raises(HostFault, match="did not answer in 0.05 s: " + ("Connection refused" if stale else "No such")):
        await ApiClient(tmp_path / "s").wait_ready("nb1-1", 0.05)


async def test_an_api_that_accepts_and_stays_silent_is_given_up_too(tmp_path: Path) -> None:
    async with open_api(tmp_path / "s", say_nothing) as api:
        with pytest.raises(HostFault, match="did not answer"):
            await api.wait_ready("nb1-1", 0.05)


@pytest.mark.parametrize("plant", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/run")])
async def test_what_a_vmm_plants_in_place_of_its_socket_leads_nowhere(
    tmp_path: Path, plant: Callable[[Path], object]
) -> None:
    plant(tmp_path / "s")
    with trio.fail_after(LIMIT_S), pytest.raises(HostFault):
        await ApiClient(tmp_path / "s").wait_ready("nb1-1", 0.05)


async def test_version_and_configuration_are_read_as_values(tmp_path: Path) -> None:
    async with open_api(tmp_path / "s", saying(told(200, {"firecracker_version": "1.16.1"}))) as api:
        assert await api.version() == Version(1, 16, 1)
        assert await api.config() == {"firecracker_version": "1.16.1"}
