"""What the commands of `nimbus jobs` show of a job: its page, its line in a list, and the exit status it stands for.

Pure; all text of a job is made harmless on its way. Called by jobs.py and joblist.py beside it.
"""

from __future__ import annotations

from nimbus.cli.plane import Reply
from nimbus.cli.tables import cell, sentence, since

_SHORT_DIGEST = 12
Job = Reply
HEAD = ("JOB", "STATE", "SOURCE", "NAME", "QUEUED", "TOOK", "WHY")


def exit_status(job: Job) -> int:
    """The command's own status where it has one, else 125 for a host's fault and 1 for the rest."""
    last = job["machines"][-1] if job["machines"] else {}
    if job["conclusion"] == "success":
        return 0
    if last.get("ending") == "timed_out":
        return 124
    if last.get("exit_code"):
        return int(last["exit_code"])
    if last.get("signal"):
        return 128 + int(last["signal"])
    return 125 if last.get("ending") == "host_fault" else 1


def describe_job(job: Job) -> list[tuple[str, str]]:
    """The page of one job, but for its machines; what it waits for is told in full."""
    shown = ("state", "conclusion", "source", "name", "queued_at", "started_at", "completed_at", "cause")
    lines = [(name, cell(job[name])) for name in shown]
    if job.get("waits_for"):
        lines.insert(1, ("waits for", sentence(job["waits_for"])))
    if job.get("source") == "github":
        asked = (("labels", ", ".join(job["labels"])), ("runner", job["runner_name"]), ("on GitHub", job["html_url"]))
        lines += [(name, sentence(value)) for name, value in asked if value]
    if job.get("priority"):
        lines.append(("priority", str(job["priority"])))
    lines.append(("learned by", cell(job["learned_by"])))
    if job.get("repaired_by"):
        lines.append(("repaired by", cell(job["repaired_by"])))
    return lines


def describe_usage(usage: Job | None) -> str:
    """What a machine's VM used, as far as its host can count it."""
    used = usage or {}
    cpu = [f"{used['cpu_ms'] / 1000:.1f} s CPU"] if "cpu_ms" in used else []
    counted = [name for name in ("memory", "disk", "received", "sent") if f"{name}_bytes" in used]
    return ", ".join([*cpu, *(f"{used[f'{name}_bytes'] / 2**20:.1f} MiB {name}" for name in counted)])


def describe_attestation(attested: Job | None) -> str:
    """What a machine was booted from, as its host told it; whole digests are in the JSON."""
    if not attested:
        return ""
    files = [f"{role} {attested[role][:_SHORT_DIGEST]}" for role in ("kernel", "initramfs", "rootfs")]
    if attested["template"]:
        files.append(f"template {attested['template'][:_SHORT_DIGEST]}")
    own = f" ({' and '.join(attested['overridden'])} of the host's own)" if attested["overridden"] else ""
    return f"image {attested['image']}: {', '.join(files)}{own}"


def row(job: Job) -> tuple[str, ...]:
    """One line of the list."""
    state = job["conclusion"] if job["state"] == "completed" and job["conclusion"] else job["state"]
    queued = cell(job["queued_at"])[:19].replace("T", " ")
    took = since(job["started_at"], job["completed_at"])
    why = sentence(job["cause"] or job.get("waits_for"))
    return (str(job["job_id"]), str(state), job["source"], cell(job["name"]), queued, took, why)
