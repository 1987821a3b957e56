"""Whether /dev/kvm really runs guests: the tiny guest of native/probe is booted on it, and its loop is timed.

A device that opens proves nothing: a KVM without hardware below it takes every call and then emulates, thousands of
times slower than this host itself. KVM may also hang, so the asking is done by a program of ours (nimbus-kvm) that is
killed at a limit. Judging is pure. Called by host_agent/vmm/choice.py and by `nimbus doctor`, each in a thread that
may wait for half a second.
"""

from __future__ import annotations

import enum
import errno
import json
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from nimbus.host.disk import write_atomically
from nimbus.host.process import boot_id

DEVICE = Path("/dev/kvm")
PROGRAM = Path(__file__).parent / "bin" / "nimbus-kvm"
GUEST = Path(__file__).parent / "bin" / "nimbus-probe.elf"
API_VERSION = 12  # the only one there has ever been since 2007
MOST_LOOP_RATIO = 20  # hardware is at 1, and its worst neighbours do not make it 20; emulation is at thousands
LIMIT_S = 15.0  # hardware takes a tenth of a second, emulation some: beyond this it hangs
KILL_LIMIT_S = 2.0  # a process that the kernel holds on to is left to it
REMEMBERED = "kvm.json"
REMEMBERED_VERSION = 1  # another number forgets what older releases saw
_NOT_THERE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM})


class KvmVerdict(enum.StrEnum):
    """What /dev/kvm is worth here."""

    HARDWARE = "hardware"
    EMULATED = "emulated"  # guests run, at a speed that no kernel boots with
    UNUSABLE = "unusable"  # it is there, and no guest runs
    ABSENT = "absent"
    DENIED = "denied"


@dataclass(frozen=True)
class Kvm:
    """The verdict and what it stands on."""

    verdict: KvmVerdict
    why: str
    create_vm_ms: float | None = None  # what KVM_CREATE_VM took on a host that has VMs
    loop_ratio: float | None = None  # CPU time of the guest's loop over the host's
    tried: bool = True  # else nothing is known: not KVM's fault, and nothing to remember


@dataclass(frozen=True)
class Trial:
    """One line of nimbus-kvm."""

    step: str  # that failed, empty where none did
    errno: int
    exit_reason: int
    api: int
    create_ns: int
    host_ns: int
    guest_ns: int
    counted: int  # rounds of the loop that the guest came to
    loop: int  # of so many


def probe_kvm(device: Path = DEVICE, *, program: Path = PROGRAM, limit_s: float = LIMIT_S) -> Kvm:
    """Try it now. Never raises for what /dev/kvm is or does."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return judge_open(error)
    try:
        told = _run_trial(program, device, limit_s)
    except OSError as error:
        return _untried(f"{program.name} does not start ({error.strerror})")
    if told is None:
        return Kvm(KvmVerdict.UNUSABLE, f"a guest that takes a tenth of a second hung for {limit_s:g} s")
    try:
        trial = Trial(**json.loads(told))
    except (ValueError, TypeError):
        return _untried(f"{program.name} ended without a word")
    return judge(trial)


def _run_trial(program: Path, device: Path, limit_s: float) -> bytes | None:
    """What the program says; None where it was killed at its limit."""
    argv = [str(program), str(device), str(GUEST), str(MOST_LOOP_RATIO)]
    with suppress(subprocess.TimeoutExpired):
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            return child.communicate(timeout=limit_s)[0]
        finally:
            if child.stdout is not None:
                child.stdout.close()
            child.kill()
            child.wait(KILL_LIMIT_S)
    return None


def _untried(reason: str) -> Kvm:
    return Kvm(KvmVerdict.UNUSABLE, f"it could not be tried: {reason}", tried=False)


def judge_open(error: OSError) -> Kvm:
    """Pure: why it does not open."""
    if error.errno in _NOT_THERE:
        return Kvm(KvmVerdict.ABSENT, "there is no /dev/kvm")
    if error.errno in _NOT_ALLOWED:
        return Kvm(KvmVerdict.DENIED, "/dev/kvm may not be opened by this process")
    return Kvm(KvmVerdict.UNUSABLE, f"/dev/kvm does not open ({error.strerror})")


def judge(trial: Trial) -> Kvm:
    """Pure: what one trial proves."""
    if trial.step in {"image", "timer"}:
        return _untried(f"{trial.step} ({os.strerror(trial.errno)})")
    if trial.step:
        return Kvm(KvmVerdict.UNUSABLE, _explain(trial))
    ratio = trial.guest_ns * trial.loop / (trial.host_ns * max(trial.counted, 1))
    create_vm_ms = trial.create_ns / 1e6
    if ratio <= MOST_LOOP_RATIO:
        why = f"a guest counts as fast as the host ({ratio:.2f} of its time)"
        return Kvm(KvmVerdict.HARDWARE, why, create_vm_ms, ratio)
    why = f"a guest runs, but takes {ratio:.0f} times as long as the host itself: no hardware is below this KVM"
    return Kvm(KvmVerdict.EMULATED, why, create_vm_ms, ratio)


def _explain(trial: Trial) -> str:
    reason = f" ({os.strerror(trial.errno)})" if trial.errno else ""
    if trial.step == "api":
        return f"it speaks API {trial.api} and not {API_VERSION}{reason}"
    if trial.step in {"boot", "count"}:
        return f"a VM was made, but its guest stops{reason or f' (KVM exit {trial.exit_reason})'}"
    return f"no VM can be made{reason}"


def find_kvm(runtime: Path) -> Kvm:
    """What was seen since this boot with this very device, or what a trial tells now, for the next one to remember."""
    key = _device_key()
    if key is None or not os.access(DEVICE, os.R_OK | os.W_OK):
        return probe_kvm()  # at once: nothing is booted
    known = recall(runtime, key)
    if known is not None:
        return known
    found = probe_kvm()
    if found.tried:
        remember(runtime, key, found)
    return found


def _device_key() -> str | None:
    """Changes with every boot, kernel and reload of KVM's modules; None where there is no device."""
    try:
        seen = DEVICE.stat()
    except OSError:
        return None
    return f"{REMEMBERED_VERSION} {boot_id()} {os.uname().release} {seen.st_rdev} {seen.st_mtime_ns}"


def recall(runtime: Path, key: str) -> Kvm | None:
    """What was remembered under this key. A file that is torn or another's is no memory."""
    try:
        stored = json.loads((runtime / REMEMBERED).read_bytes())
        if stored["key"] != key:
            return None
        return Kvm(**{**stored["kvm"], "verdict": KvmVerdict(stored["kvm"]["verdict"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def remember(runtime: Path, key: str, kvm: Kvm) -> None:
    """Without the right or the folder to write it, the next one tries again."""
    with suppress(OSError):
        data = json.dumps({"key": key, "kvm": asdict(kvm)}).encode()
        write_atomically(runtime / REMEMBERED, data, fsync=False)
