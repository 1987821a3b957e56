"""What a guest reaches of its host: the declared ports of its gateway and nothing else."""

from __future__ import annotations

import shlex
import socket
import urllib.request

import pytest

from tests.acceptance.gate import GATEWAY, GUEST_PORT, Gate, running_gate
from tests.acceptance.stack import Stack, wait_idle

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow]


def own_address() -> str:
    """The address under which this host is known to others. Sends nothing: a UDP socket only picks its route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("203.0.113.1", 9))
        return str(probe.getsockname()[0])


def test_a_declared_port_answers_and_nothing_else_of_the_host_does(stack: Stack, gate: Gate) -> None:
    gate.open()
    with running_gate("0.0.0.0") as undeclared:  # noqa: S104 - on every address, so that only the rules keep it shut
        undeclared.open()
        port = undeclared.port
        here = own_address()
        with urllib.request.urlopen(f"http://{here}:{port}/", timeout=10) as answer:
            assert answer.read() == b"open\n"  # the host itself reaches it
        closed = [
            f"http://{GATEWAY}:{port}/",
            f"http://{here}:{port}/",
            f"http://{here}:{gate.port}/",
            f"http://127.0.0.1:{gate.port}/",
            f"http://{GATEWAY}:{gate.port}/",
            stack.env["NIMBUS_CONTROL_PLANE_URL"].replace("127.0.0.1", GATEWAY) + "/healthz",
            stack.env["NIMBUS_CONTROL_PLANE_URL"].replace("127.0.0.1", here) + "/healthz",
            "http://169.254.169.254/",
        ]
        open_url = f"http://{GATEWAY}:{GUEST_PORT}/"
        # not wget's own -T: with it, the wget of Debian 12's busybox dies of a segmentation fault
        knock = "timeout 3 wget -q -O /dev/null $url && echo reached $url || echo no $url"
        every = f"for url in {' '.join(map(shlex.quote, [open_url, *closed]))}; do ({knock}) 2>/dev/null & done; wait"
        job_id = stack.submit(every)
        stack.wait_job(job_id, "completed")
    gate.shut()
    wait_idle(stack)
    assert set(stack.output(job_id).splitlines()) == {f"reached {open_url}", *(f"no {url}" for url in closed)}
