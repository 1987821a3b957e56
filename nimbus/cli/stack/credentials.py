"""The secrets of one stack: made once, kept in `secrets.env` (0600) of its state folder. Never printed.

A variable of the same name in our own environment wins, so that a real GitHub App can be used. Called by `nimbus up`
and `nimbus demo`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nimbus.model.errors import HostFault

SECRETS_FILE = "secrets.env"
APP_KEY_FILE = "github-app.pem"
APP_KEY_BITS = 2048  # what GitHub itself generates for an App
NAMES = (
    "NIMBUS_JWT_SECRET",
    "NIMBUS_AGENT_TOKEN_SECRET",
    "NIMBUS_CACHE_SHARED_SECRET",
    "NIMBUS_GITHUB_WEBHOOK_SECRET",
    "NIMBUS_METRICS_TOKEN",
    "NIMBUS_SIM_CONTROL_TOKEN",
    "STACK_POSTGRES_PASSWORD",
    "STACK_REDIS_PASSWORD",
)


def ensure_secrets(state: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Every secret of NAMES: from the environment, else from the file, else new and written there."""
    path = state / SECRETS_FILE
    kept = _parse(path)
    for name in NAMES:
        kept.setdefault(name, secrets.token_hex(32))
    content = "".join(f"{name}={value}\n" for name, value in sorted(kept.items())).encode()
    if not path.exists() or path.read_bytes() != content:
        write_private(path, content)
    return {name: environ.get(name) or value for name, value in kept.items()}


def ensure_app_key(state: Path) -> str:
    """The PEM of the GitHub App that the fake GitHub knows; made once."""
    path = state / APP_KEY_FILE
    if not path.exists():
        key = rsa.generate_private_key(public_exponent=65537, key_size=APP_KEY_BITS)
        form = serialization.PrivateFormat.TraditionalOpenSSL  # as GitHub's download is
        write_private(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return path.read_text()


def public_half(private_pem: str) -> str:
    """The public key's PEM, which is all that GitHub has of an App."""
    key = serialization.load_pem_private_key(private_pem.encode(), password=None)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def write_private(path: Path, content: bytes) -> None:
    """A file that only its owner reads, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    draft.replace(path)


def _parse(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    kept = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    if any(name in kept and len(kept[name]) < 32 for name in NAMES):
        raise HostFault(f"{path} holds a secret that is too short: remove the file, and it is made anew")
    return kept
