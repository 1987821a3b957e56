"""Our calls and our client against a Firecracker: the fake one with its faults, and the real one where it is.

What wire/firecracker.py makes is taken whole by both, in the order of a boot, a snapshot and a restore.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.vmm.fcapi import ApiClient, CallLimits
from nimbus.model.errors import HostFault, Refused
from nimbus.wire import firecracker as api
from nimbus.wire.fcanswers import parse_connected
from nimbus.wire.firecracker import ApiCall, ApiRefused, Drive, Nic, RateLimit, Restore, TokenBucket, Version
from tests.fakes.install import Fakes, install_fakes
from tests.fakes.play import ID, Scene, open_scene
from tests.hosts import needs_root

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 60.0
BUCKET = TokenBucket(1 << 20, 1000, burst=1 << 20)
LIMIT = RateLimit(BUCKET, BUCKET)


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return install_fakes(tmp_path / "fakes")


@pytest.fixture
def fake(fakes: Fakes, tmp_path: Path) -> Iterator[Scene]:
    """A fake VMM in a folder of its own."""
    with open_scene([str(fakes.firecracker)], tmp_path) as scene:
        yield scene


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.needs_firecracker)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    program = os.environ.get("NIMBUS_FC_BIN") or shutil.which("firecracker")
    if request.param == "fake":
        program = str(install_fakes(tmp_path / "fakes").firecracker)
    if program is None:
        pytest.skip("no firecracker on this host: name one by NIMBUS_FC_BIN")
    with open_scene([program], tmp_path) as opened:
        yield opened


def client_of(scene: Scene) -> ApiClient:
    return ApiClient(scene.root / "api.sock")


def configure(root: Path, line: str = "idle") -> list[ApiCall]:
    """Everything that can be configured, as our calls say it."""
    return [
        api.set_logger(str(root / "log")),
        api.set_metrics(str(root / "measures")),
        api.set_serial(None, BUCKET),
        api.set_machine(1, 32),
        api.set_boot(str(root / "kernel"), line),
        api.set_drive(Drive("root", str(root / "disk"), read_only=True, root=True, limit=LIMIT)),
        api.set_nic(Nic("net", "tap0", "02:00:00:00:00:01", mtu=1400, rx=LIMIT, tx=LIMIT)),
        api.set_metadata_service(["net"]),
        api.put_metadata({"nimbus": {"vm": "1"}}),
        api.set_vsock(3, str(root / "v.sock")),
        api.set_entropy(),
    ]


async def ask_all(client: ApiClient, calls: list[ApiCall]) -> None:
    for call in calls:
        answer = await client.ask(call)
        assert not answer.deprecated, call


async def test_all_our_calls_are_taken_and_none_goes_out_of_use(scene: Scene) -> None:
    root, client = scene.root, client_of(scene)
    saved = (str(root / "saved.state"), str(root / "saved.mem"))
    with trio.fail_after(LIMIT_S):
        assert (await client.wait_ready(ID, LIMIT_S)).state == "Not started"
        assert await client.version() >= Version(1, 16)
        await ask_all(client, [*configure(root), api.start_instance()])
        assert (await client.instance()).state == "Running"
        await ask_all(client, [api.flush_metrics(), api.pause_vm()])
        assert (await client.instance()).state == "Paused"
        await ask_all(client, [api.create_snapshot(*saved)])
        await trio.to_thread.run_sync(scene.end)
        await trio.to_thread.run_sync(scene.start)
        moved = Restore(*saved, taps={"net": "tap1"}, vsock=str(root / "other.sock"), clock_realtime=True)
        await ask_all(client, [api.load_snapshot(moved)])
        assert (await client.instance()).state == "Paused"
        after = [api.limit_drive("root", LIMIT), api.limit_nic("net", LIMIT, LIMIT), api.put_metadata({"a": 1})]
        await ask_all(client, [*after, api.resume_vm()])
        assert (await client.instance()).state == "Running"
        config = await client.config()
    assert isinstance(config["machine-config"], dict)
    assert config["machine-config"]["mem_size_mib"] == 32


async def hear_vsock(scene: Scene, name: str = "v.sock") -> bytes:
    """What the vsock says to a wish for the guest's port; asked again while the guest does not listen yet."""
    while True:
        async with await trio.open_unix_socket(str(scene.root / name)) as stream:
            await stream.send_all(api.render_connect(1024))
            try:
                if word := await stream.receive_some(32):
                    return bytes(word)
            except trio.BrokenResourceError:
                pass
        await trio.sleep(0.005)


async def test_the_fakes_guest_answers_while_it_runs_and_again_once_restored(fake: Scene) -> None:
    root, client = fake.root, client_of(fake)
    saved = (str(root / "saved.state"), str(root / "saved.mem"))
    with trio.fail_after(LIMIT_S):
        await ask_all(client, [*configure(root, "quiet"), api.start_instance()])
        parse_connected(await hear_vsock(fake))
        await ask_all(client, [api.pause_vm(), api.create_snapshot(*saved)])
        with trio.move_on_after(0.2) as waited:
            await hear_vsock(fake)
        await trio.to_thread.run_sync(fake.end)
        await trio.to_thread.run_sync(fake.start)
        await ask_all(client, [api.load_snapshot(Restore(*saved)), api.resume_vm()])
        parse_connected(await hear_vsock(fake))
        assert (await client.instance()).state == "Running"
    assert waited.cancelled_caught


async def test_a_failed_load_is_told_in_its_words_and_is_the_end_of_the_process(scene: Scene) -> None:
    client = client_of(scene)
    with trio.fail_after(LIMIT_S):
        with pytest.raises(ApiRefused, match="Failed to restore from snapshot") as caught:
            await client.ask(api.load_snapshot(Restore("/none", "/none")))
        assert await trio.to_thread.run_sync(scene.wait_exit) == 1
        with pytest.raises(HostFault, match="the VMM is dead before GET /"):
            await client.instance()
    assert caught.value.fault.endswith("No such file or directory (os error 2)")


async def test_metadata_that_grows_too_large_is_the_jobs_fault(scene: Scene) -> None:
    client = client_of(scene)
    with trio.fail_after(LIMIT_S):
        await client.ask(api.put_metadata({"a": "x" * 51_000}))
        with pytest.raises(Refused, match="metadata is too large"):
            await client.ask(ApiCall("PATCH", "/mmds", {"b": "x" * 51_000}))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"do": "exit", "code": 148}, "the VMM died during PATCH /vm"),
        ({"do": "exit_after", "code": 151}, "the VMM died during PATCH /vm"),
        ({"do": "half", "code": 1}, "the VMM died during PATCH /vm"),
        ({"do": "drop"}, "the VMM died during PATCH /vm"),
        ({"do": "hang"}, "no answer to PATCH /vm"),
        ({"do": "refuse", "text": "not today"}, "refused PATCH /vm: not today"),
        ({"do": "refuse", "text": "\x1b[31mred"}, r"\\x1b\[31mred"),
        ({"do": "refuse", "text": "no", "status": 413}, "refused PATCH /vm: no"),
    ],
)
async def test_whatever_goes_wrong_with_a_call_is_told_by_its_name(
    fakes: Fakes, fake: Scene, fault: dict[str, object], said: str
) -> None:
    fakes.set_faults(calls={"PATCH /vm": fault})
    client = ApiClient(fake.root / "api.sock", CallLimits(slow_s=0.2 if fault["do"] == "hang" else LIMIT_S))
    with trio.fail_after(LIMIT_S):
        await client.wait_ready(ID, LIMIT_S)
        with pytest.raises(HostFault, match=said):
            await client.ask(api.pause_vm())


async def test_a_fault_may_wait_for_its_turn(fakes: Fakes, fake: Scene) -> None:
    fakes.set_faults(calls={"GET /version": {"do": "refuse", "text": "twice", "nth": 2}})
    client = client_of(fake)
    with trio.fail_after(LIMIT_S):
        assert await client.version() == Version(1, 16, 1)
        with pytest.raises(ApiRefused, match="twice"):
            await client.version()
        assert await client.version() == Version(1, 16, 1)
