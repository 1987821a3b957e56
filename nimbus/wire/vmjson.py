"""What a microVM is, wants, has used and was booted from, as JSON: one form for API and database.

Never opens a connection. Called by leaseapi.py and by the control plane's rows. Unknown fields are ignored,
and of a use of a VM missing ones too: no host can count everything.
"""

from __future__ import annotations

from nimbus.model.attestation import Attestation
from nimbus.model.errors import Refused
from nimbus.model.template import is_digest
from nimbus.model.vm import Command, Shape, Usage
from nimbus.wire.fields import Fields

Json = dict[str, object]


def render_shape(shape: Shape) -> Json:
    return {"cpus": shape.cpus, "mem_mib": shape.mem_mib, "disk_mib": shape.disk_mib}


def parse_shape(fields: Fields) -> Shape:
    return Shape(fields.integer("cpus"), fields.integer("mem_mib"), fields.integer("disk_mib"))


def render_command(command: Command) -> Json:
    return {
        "argv": list(command.argv),
        "env": dict(command.env),
        "cwd": command.cwd,
        "user": command.user,
        "timeout_s": command.timeout_s,
        "grace_s": command.grace_s,
    }


def parse_command(fields: Fields) -> Command:
    """A command; cwd, user, timeout and grace have the model's defaults where they are left out."""
    default = Command(argv=("true",))
    return Command(
        argv=fields.texts("argv", 4096, 131072),
        env=fields.text_map("env") if fields.has("env") else {},
        cwd=fields.text("cwd") if fields.has("cwd") else default.cwd,
        user=fields.text("user", 256) if fields.has("user") else default.user,
        timeout_s=fields.number("timeout_s") if fields.has("timeout_s") else None,
        grace_s=fields.number("grace_s", 0.0, 3600.0) if fields.has("grace_s") else default.grace_s,
    )


def render_usage(usage: Usage) -> Json:
    """What was counted; what this host cannot count is left out."""
    counted = {
        "cpu_ms": usage.cpu_ms,
        "memory_bytes": usage.memory_bytes,
        "disk_bytes": usage.disk_bytes,
        "received_bytes": usage.received_bytes,
        "sent_bytes": usage.sent_bytes,
    }
    return {name: value for name, value in counted.items() if value is not None}


def parse_usage(fields: Fields) -> Usage:
    return Usage(
        cpu_ms=_counted(fields, "cpu_ms"),
        memory_bytes=_counted(fields, "memory_bytes"),
        disk_bytes=_counted(fields, "disk_bytes"),
        received_bytes=_counted(fields, "received_bytes"),
        sent_bytes=_counted(fields, "sent_bytes"),
    )


def _counted(fields: Fields, name: str) -> int | None:
    return fields.integer(name) if fields.has(name) else None


def render_attestation(attestation: Attestation) -> Json:
    return {
        "image": attestation.image,
        "manifest": attestation.manifest,
        "kernel": attestation.kernel,
        "initramfs": attestation.initramfs,
        "rootfs": attestation.rootfs,
        "verified_at": attestation.verified_at,
        "overridden": list(attestation.overridden),
        "template": attestation.template,
    }


def parse_attestation(fields: Fields) -> Attestation:
    return Attestation(
        image=fields.text("image", 64),
        manifest=_digest(fields, "manifest"),
        kernel=_digest(fields, "kernel"),
        initramfs=_digest(fields, "initramfs"),
        rootfs=_digest(fields, "rootfs"),
        verified_at=fields.number("verified_at"),
        overridden=fields.texts("overridden", 8, 16) if fields.has("overridden") else (),
        template=_digest(fields, "template") if fields.has("template") else None,
    )


def _digest(fields: Fields, name: str) -> str:
    text = fields.text(name, 64)
    if not is_digest(text):
        raise Refused(f"attestation: {name} must be 64 hex digits")
    return text
