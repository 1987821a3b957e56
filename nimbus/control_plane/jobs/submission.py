"""What a command job may ask for: read from its JSON, checked field by field, before anything is written.

Pure; never looks at the database, so nothing here knows whether an org exists. A message names the field that is
wrong and never a value of the environment. Called by jobs_api.py; jobs.py writes what comes of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nimbus.control_plane.services import JobRules
from nimbus.model.errors import Forbidden, Refused
from nimbus.model.labels import Arch, check_size, parse_size
from nimbus.model.vm import Command, Shape
from nimbus.wire.fields import Fields, parse_object

_IMAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/:@-]{0,253}[A-Za-z0-9])?")
_SHAPE = ("cpus", "mem_mib", "disk_mib")
_FIELDS = frozenset(
    {"image", "argv", "cmd", "env", "cwd", "user", "timeout_s", "size", *_SHAPE, "arch"}
    | {"idempotency_key", "org_id", "name", "priority"}
)
MAX_TIMEOUT_S = 7 * 24 * 3600.0  # a host's own limit (NIMBUS_JOB_TIMEOUT) is mostly shorter; this one stops slips
MAX_WORD_BYTES = 131071  # what Linux takes as one word of a command line or one variable, without its NUL
MAX_COMMAND_BYTES = 1_000_000  # all of them: a guest takes 1 MiB, with the names of folder, user and host
MAX_PRIORITY = 100


@dataclass(frozen=True)
class Submission:
    """A command to run in a machine of its own."""

    command: Command = field(repr=False)
    shape: Shape
    image: str
    name: str
    idempotency_key: str | None
    org_id: int | None
    arch: Arch = Arch.X64
    priority: int = 0


def parse_submission(body: bytes, rules: JobRules) -> Submission:
    """A submission from its JSON; Refused with the field's name where it is wrong."""
    fields = parse_object(body, "job")
    fields.refuse_unknown(_FIELDS)
    image = fields.text("image", 255) if fields.has("image") else rules.default_image
    check_image(image)
    command = _parse_command(fields)
    shape, arch = _parse_machine(fields, rules)
    return Submission(
        command=command,
        shape=shape,
        image=image,
        name=fields.text("name", 256) if fields.has("name") else "",
        idempotency_key=fields.text("idempotency_key", 256) if fields.has("idempotency_key") else None,
        org_id=fields.integer("org_id", 1) if fields.has("org_id") else None,
        arch=arch,
        priority=fields.integer("priority", -MAX_PRIORITY, MAX_PRIORITY) if fields.has("priority") else 0,
    )


def check_image(image: str) -> None:
    """Refused for what can be no image's name."""
    if not _IMAGE.fullmatch(image) or ".." in image:
        raise Refused("image must be a name such as base or nimbus/ai-eval-runner:latest")


def check_priority(submission: Submission, caller_org: int | None) -> None:
    """Forbidden where a tenant puts its job before others: an org's queue is one, whoever of it holds a token.

    Priorities count within an org alone, so this shields teams of one org from each other, as its operator means them.
    """
    if caller_org is not None and submission.priority > 0:
        raise Forbidden("job: priority above 0 is for the operator: a token of an org may only lower it")


def _parse_command(fields: Fields) -> Command:
    if fields.has("argv") == fields.has("cmd"):
        raise Refused("job: give either argv (a list of words) or cmd (a shell line)")
    asked = "argv" if fields.has("argv") else "cmd"
    argv = (
        fields.texts("argv", 4096, MAX_WORD_BYTES)
        if asked == "argv"
        else ("/bin/sh", "-c", fields.text("cmd", MAX_WORD_BYTES))
    )
    env = fields.text_map("env", max_chars=MAX_WORD_BYTES) if fields.has("env") else {}
    total = _check_words(asked, argv) + _check_words("env", [f"{name}={value}" for name, value in env.items()])
    if total > MAX_COMMAND_BYTES:
        raise Refused(f"job: {asked} and env take {total} bytes together: {MAX_COMMAND_BYTES} are the most")
    default = Command(argv=("true",))
    return Command(
        argv=argv,
        env=env,
        cwd=fields.text("cwd") if fields.has("cwd") else default.cwd,
        user=fields.text("user", 256) if fields.has("user") else default.user,
        timeout_s=fields.number("timeout_s", 0.001, MAX_TIMEOUT_S) if fields.has("timeout_s") else None,
    )


def _check_words(asked: str, words: tuple[str, ...] | list[str]) -> int:
    """The bytes that they take in a guest, each with its NUL."""
    sizes = [len(word.encode()) for word in words]
    if max(sizes, default=0) > MAX_WORD_BYTES:
        raise Refused(f"job: {asked} must hold no text of more than {MAX_WORD_BYTES} bytes: Linux takes no longer one")
    return sum(sizes) + len(sizes)


def _parse_machine(fields: Fields, rules: JobRules) -> tuple[Shape, Arch]:
    arch = fields.choice("arch", Arch) if fields.has("arch") else None
    if not fields.has("size"):
        return _parse_shape(fields, rules), arch or Arch.X64
    for name in _SHAPE:
        if fields.has(name):
            raise Refused(f"job: give either size or {name}")
    size = fields.text("size", 64)
    try:
        shape, named = parse_size(size, rules.sizes)
    except Refused as error:
        raise Refused(f"job: size: {error}") from error
    if arch is not None and named is not None and arch is not named:
        raise Refused(f"job: size says {named} and arch says {arch}: keep one of them")
    return shape, named or arch or Arch.X64


def _parse_shape(fields: Fields, rules: JobRules) -> Shape:
    default = Shape()
    cpus = fields.integer("cpus", 1, 2**20) if fields.has("cpus") else default.cpus
    mem_mib = fields.integer("mem_mib", 1, 2**30) if fields.has("mem_mib") else default.mem_mib
    disk_mib = fields.integer("disk_mib", 1, 2**30) if fields.has("disk_mib") else default.disk_mib
    try:
        check_size(cpus, mem_mib, disk_mib, rules.sizes)
        return Shape(cpus, mem_mib, disk_mib)
    except Refused as error:
        raise Refused(f"job: cpus, mem_mib, disk_mib: {error}") from error
