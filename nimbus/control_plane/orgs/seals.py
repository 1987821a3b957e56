"""Sealing what the database keeps and people never see again: AES-GCM under keys derived from NIMBUS_JWT_SECRET.

Pure but for the random nonce. A value is bound to its place: moved to another row it does not open. During a rotation
what the next and the previous secret sealed opens too; what only the previous one can open is due to be sealed anew.
Called by masks.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nimbus.runtime.settings import SharedSecret

_KEY_BYTES = 32
_KID_BYTES = 9
_NONCE_BYTES = 12


@dataclass(frozen=True)
class Sealed:
    """A value as the database keeps it, and which key opens it."""

    kid: str
    box: bytes = field(repr=False)  # nonce, then what AES-GCM makes


class Seals:
    """The keys of one control plane."""

    def __init__(self, secret: SharedSecret) -> None:
        self._keys = {_derive_kid(each): AESGCM(_derive(each, b"key", _KEY_BYTES)) for each in secret.accepted}
        self._kid = _derive_kid(secret.current)
        # what the next secret sealed stays: a process that was restarted already signs with it
        self.lasting = [_derive_kid(each) for each in (secret.current, secret.next) if each is not None]

    def seal(self, value: bytes, place: str) -> Sealed:
        """The value under the key that signs now."""
        nonce = os.urandom(_NONCE_BYTES)
        return Sealed(self._kid, nonce + self._keys[self._kid].encrypt(nonce, value, place.encode()))

    def open(self, sealed: Sealed, place: str) -> bytes | None:
        """The value; None where no key of ours opens it, or it was sealed for another place."""
        key = self._keys.get(sealed.kid)
        if key is None:
            return None
        try:
            return key.decrypt(sealed.box[:_NONCE_BYTES], sealed.box[_NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError):
            return None


def _derive_kid(secret: str) -> str:
    return _derive(secret, b"key id", _KID_BYTES).hex()


def _derive(secret: str, what: bytes, length: int) -> bytes:
    info = b"nimbus sealed masks v1: " + what
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret.encode())
