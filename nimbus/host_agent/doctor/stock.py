"""What Nimbus has on this host: its programs and image, room for VMs, slots, records, leftovers and the agent's unit.

Reads only. Called by rounds.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from nimbus.host.quarantine import Quarantined, list_quarantined
from nimbus.host.roots import find_rival
from nimbus.host.slots import list_slots
from nimbus.host_agent.doctor.finding import Finding, Patient, broken, degraded, ok
from nimbus.host_agent.doctor.kernel import existing
from nimbus.host_agent.keeper import KEEPER_BINARY
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.reaper import find_nameless
from nimbus.host_agent.sight.presence import find_agent, find_unit
from nimbus.host_agent.sight.standing import Sight, Standing, look
from nimbus.host_agent.vmm.choice import GUEST_INIT, choose_vmm
from nimbus.model.errors import NimbusError
from nimbus.model.vm import Shape
from nimbus.storage.content import ImageStore
from nimbus.storage.images import DEFAULT_IMAGE, verify_image

ANSWER_LIMIT_S = 10.0  # of a program that is asked for its version or a property
VMM_OVERHEAD_MIB = 100  # what QEMU takes beside its guest's memory
_PURGE = "nimbus vms purge --all"


def check_vmm(patient: Patient) -> Iterator[Finding]:
    try:
        choice = choose_vmm(patient.vmm, patient.accel, firecracker=patient.firecracker, jailer=patient.jailer)
    except NimbusError as error:
        yield broken("vmm", str(error), "apt-get install qemu-system-x86, or set NIMBUS_VMM and NIMBUS_ACCEL")
        return
    if choice.vmm.name == "fake":
        yield degraded("vmm", f"{choice.label}: for rehearsals alone", "unset NIMBUS_VMM")
        return
    version = _ask([str(choice.binary), "--version"]).partition("\n")[0]
    if choice.accel == "tcg":
        remedy = "run trusted jobs only, or take a host whose KVM is hardware (and do not set NIMBUS_ACCEL=tcg there)"
        yield degraded("vmm", f"{choice.label}; {version}", remedy)
    elif choice.warning:
        yield degraded("vmm", f"{choice.label}; {version}", "unset NIMBUS_VMM and NIMBUS_ACCEL")
    else:
        yield ok("vmm", f"{choice.label}; {version}")


def _ask(argv: Sequence[str]) -> str:
    """What a program prints; nothing where it fails. Raises OSError where it cannot be started."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode(errors="replace").strip()


def check_programs(_: Patient) -> Iterator[Finding]:
    missing = [path for path in (KEEPER_BINARY, GUEST_INIT) if not os.access(path, os.X_OK)]
    for path in missing:
        yield broken("programs", f"{path} is not built: no VM starts without it", "make build")
    if not missing:
        yield ok("programs", f"{KEEPER_BINARY.name} and {GUEST_INIT.name} are built")


def check_image(patient: Patient) -> Iterator[Finding]:
    if patient.vmm == "fake":
        yield ok("image", "the fake VMM boots none")
        return
    try:
        manifest = verify_image(ImageStore(patient.layout.images), DEFAULT_IMAGE)
    except NimbusError as error:
        yield broken("image", str(error), "nimbus assets build (with --force where one is damaged)")
    else:
        detail = f"every byte of {manifest.name} is as its manifest says; kernel {manifest.kernel_release}"
        yield ok("image", detail)


def check_disk(patient: Patient) -> Iterator[Finding]:
    folder = existing(patient.layout.state)
    free_mib = shutil.disk_usage(folder).free >> 20
    yield judge_disk(str(folder), free_mib, patient.reserve_mib)


def judge_disk(folder: str, free_mib: int, reserve_mib: int) -> Finding:
    """Pure: whether a VM of the default shape fits beside the reserve."""
    told = f"{free_mib} MiB are free in {folder}, of which {reserve_mib} are the host's reserve"
    remedy = f"free some, enlarge the filesystem, or {_PURGE}"
    if free_mib <= reserve_mib:
        return broken("disk", f"{told}: no VM is taken on", remedy)
    if free_mib - reserve_mib < Shape().disk_mib:
        return degraded(
            "disk", f"{told}: too little for the {Shape().disk_mib} MiB that a VM's disk may grow to", remedy
        )
    return ok("disk", told)


def check_memory(_: Patient) -> Iterator[Finding]:
    yield judge_memory(Path("/proc/meminfo").read_text())


def judge_memory(meminfo: str) -> Finding:
    """Pure: whether a VM of the default shape fits into what is available."""
    fields = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    total_mib, available_mib = (int(fields[name].split()[0]) >> 10 for name in ("MemTotal", "MemAvailable"))
    told = f"{available_mib} of {total_mib} MiB are available"
    wanted = Shape().mem_mib + VMM_OVERHEAD_MIB
    if available_mib < wanted:
        return degraded("memory", f"{told}: a VM takes {wanted} at least", "end what uses it, or add memory")
    return ok("memory", told)


def check_slots(patient: Patient) -> Iterator[Finding]:
    layout = patient.layout
    held = [slot.index for slot in list_slots(layout.runtime)]
    yield from judge_slots(held, list_quarantined(layout.runtime), layout.slot_limit, layout.runtime / "slots")


def judge_slots(held: Sequence[int], apart: Sequence[Quarantined], limit: int, folder: Path) -> Iterator[Finding]:
    """Pure: one line for the count, and one for each slot that nobody is given."""
    idle = [slot for slot in apart if slot.index not in held and slot.index < limit]
    taken = [index for index in held if index < limit]
    free = limit - len(taken) - len(idle)
    told = f"{free} free, {len(taken)} held, {len(apart)} in quarantine, of {limit}"
    if free > 0:
        yield ok("slots", told)
    else:
        yield degraded("slots", f"{told}: no VM starts before one ends", f"wait, {_PURGE}, or raise NIMBUS_VM_SLOTS")
    for slot in apart:
        mended = f"mend the cause, then: rm -f {folder}/{slot.index}.quarantine {folder}/{slot.index}.failures"
        yield degraded("slots", f"slot {slot.index} failed again and again ({slot.act}: {slot.reason})", mended)


def check_name(patient: Patient) -> Iterator[Finding]:
    layout = patient.layout
    rival = find_rival(layout.runtime, layout.root_id, layout.state)
    if rival is None:
        yield ok("name", f"nb{layout.root_id} is the name of {layout.state} alone")
    else:
        detail = f"{rival} has the short name nb{layout.root_id} too: each would take the other's VMs for leftovers"
        yield broken("name", detail, "set another NIMBUS_STATE_DIR")


def check_ledger(patient: Patient) -> Iterator[Finding]:
    agent = find_agent(patient.layout.state)
    yield from judge_ledger(look(Ledger(patient.layout.ledger)), agent is not None)


def judge_ledger(sights: Sequence[Sight], agent_runs: bool) -> Iterator[Finding]:
    """Pure: one line for each kind of record that somebody must act on."""
    named = {word: ", ".join(str(s.vm) for s in sights if s.standing is word) for word in Standing}
    stuck = ", ".join(str(s.vm) for s in sights if s.record and s.record.failures)
    if named[Standing.ORPHAN]:
        yield degraded("ledger", f"orphans hold slots and memory: {named[Standing.ORPHAN]}", _PURGE)
    if named[Standing.UNREADABLE]:
        detail = f"records that this release cannot read: {named[Standing.UNREADABLE]}"
        yield degraded("ledger", detail, "nimbus vms inspect VM; a newer release wrote it, or a crash tore it")
    if stuck:
        yield degraded("ledger", f"a teardown failed: {stuck}", f"nimbus vms inspect VM says where; then {_PURGE}")
    waiting = ", ".join(filter(None, (named[Standing.ADOPTABLE], named[Standing.ENDED_UNTOLD])))
    if waiting and not agent_runs:
        remedy = "systemctl start nimbus-agent (or nimbus agent run) before their deadline"
        yield degraded("ledger", f"machines wait for an agent: {waiting}", remedy)
    elif not (named[Standing.ORPHAN] or named[Standing.UNREADABLE] or stuck):
        yield ok("ledger", f"VMs: {len(sights)}, each with somebody to see to it" if sights else "no VMs")


def check_leftovers(patient: Patient) -> Iterator[Finding]:
    nameless = find_nameless(patient.layout)  # before the records: a VM that is being made has its record first
    orphaned = sorted(str(vm) for vm in nameless - set(Ledger(patient.layout.ledger).vms()))
    if orphaned:
        yield degraded("leftovers", f"things on this host bear names without a record: {', '.join(orphaned)}", _PURGE)
    else:
        yield ok("leftovers", f"nothing bears the name nb{patient.layout.root_id} without a record")


def check_agent(patient: Patient) -> Iterator[Finding]:
    agent = find_agent(patient.layout.state)
    if agent is None:
        yield ok("agent", f"none runs on {patient.layout.state}")
        return
    unit = find_unit(agent.pid)
    if unit is None or shutil.which("systemctl") is None:
        yield ok("agent", f"process {agent.pid}, not a systemd service")
        return
    shown = _ask(["systemctl", "show", "--property=KillMode,Delegate,SendSIGKILL,TimeoutStopUSec", unit])
    yield judge_unit(unit, dict(line.split("=", 1) for line in shown.splitlines() if "=" in line))


def judge_unit(unit: str, properties: dict[str, str]) -> Finding:
    """Pure: whether a restart of this unit leaves the jobs alone."""
    wanted = {"KillMode": "process", "Delegate": "yes"}
    wrong = [f"{name}={properties[name]}" for name, value in wanted.items() if properties.get(name, value) != value]
    if wrong:
        detail = f"{unit} has {', '.join(wrong)}: a restart may take processes of running jobs along"
        return degraded(
            "agent", detail, f"set {', '.join(f'{k}={v}' for k, v in wanted.items())} (deploy/nimbus-agent.service)"
        )
    return ok("agent", f"{unit} leaves jobs alone when it is restarted")
