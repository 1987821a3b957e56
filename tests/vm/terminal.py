"""`nimbus run` as a newcomer uses it: a process of its own, its streams, its exit status, its signals.

Each terminal has a state root of its own over the images that were built once. Counts every guest that it boots.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nimbus.host.cgroup import cgroup_dir
from nimbus.host.inventory import Territory
from nimbus.host_agent.ledger import Ledger
from nimbus.model.ids import object_name, state_root_id
from tests.guests import count_boots

NIMBUS = (sys.executable, "-m", "nimbus")
LIMIT_S = 120.0  # a guest boots in two seconds; on a machine that eight share, in thirty
END_S = 10.0  # from a signal to the end of the process, teardown included, on a machine that others use too
_LOOK_EVERY_S = 0.01

Env = Mapping[str, str]
NO_ENV: Env = MappingProxyType({})
Done = subprocess.CompletedProcess[bytes]
Started = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Terminal:
    """A person's shell with NIMBUS_STATE_DIR set."""

    territory: Territory

    def run(self, *words: str, before: tuple[str, ...] = (), env: Env = NO_ENV, boots: int = 1) -> Done:
        """`nimbus run WORDS` to its end; see `call`."""
        done = self.call("run", *words, before=before, env=env)
        count_boots("qemu", boots)
        return done

    def refuse(self, *words: str, before: tuple[str, ...] = (), env: Env = NO_ENV) -> Done:
        """The same where no guest is expected to boot."""
        return self.run(*words, before=before, env=env, boots=0)

    def call(self, *words: str, before: tuple[str, ...] = (), env: Env = NO_ENV) -> Done:
        """Any `nimbus` command; `before` is put in front of it, as sudo would be."""
        argv = [*before, *NIMBUS, *words]
        return subprocess.run(
            argv, env=self._env(env), stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False
        )

    @contextmanager
    def start(self, *words: str, before: tuple[str, ...] = (), env: Env = NO_ENV) -> Iterator[Started]:
        """`nimbus run WORDS` while the block runs; asked to end, if it still lives, when the block does."""
        argv = [*before, *NIMBUS, "run", *words]
        process = subprocess.Popen(
            argv,
            env=self._env(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # as a shell starts a job: a Ctrl-C reaches every process of it
        )
        with process:
            try:
                yield process
                process.terminate()
                process.wait(END_S)
            finally:
                process.kill()
        count_boots("qemu", 1)

    @contextmanager
    def start_ready(self, *words: str, before: tuple[str, ...] = ()) -> Iterator[Started]:
        """A guest whose command said `ready` and now sleeps."""
        with self.start(*words, "--", "sh", "-c", "echo ready; sleep 1000", before=before) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", b"".join(process.stderr or ())
            yield process

    def has_record(self) -> bool:
        return bool(list((self.territory.state_root / "ledger").glob("*.json")))

    def vmm_pids(self) -> list[int]:
        """Processes in the leaf cgroups of this state root's VMs."""
        root_id = state_root_id(str(self.territory.state_root))
        pids = []
        for vm in Ledger(self.territory.state_root / "ledger").vms():
            procs = cgroup_dir(object_name(root_id, vm)) / "vmm" / "cgroup.procs"
            pids += [int(line) for line in procs.read_text().split()] if procs.exists() else []
        return pids

    def _env(self, env: Env) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIMBUS_")}
        return inherited | {"NIMBUS_STATE_DIR": str(self.territory.state_root), **env}


def wait_until(condition: Callable[[], object], within_s: float) -> None:
    """Return as soon as `condition` holds; fail where it does not within the limit."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not hold within {within_s:g} s"
        time.sleep(_LOOK_EVERY_S)


def peak_rss_mib(pid: int) -> int:
    """The most memory that this process held so far; 0 once it is gone. (rusage would count its parent's in.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peaks = [int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM:")]
    return peaks[0] if peaks else 0
