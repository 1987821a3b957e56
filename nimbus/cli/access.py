"""Which token a command shows to a service. A signing secret itself is never sent anywhere.

Called by the commands that speak to the control plane or to the logging pipeline.
"""

from __future__ import annotations

import os
import time

from nimbus.model.errors import Refused
from nimbus.wire.tokens import Audience, SigningKey, hmac_key, render_token

SUBJECT_VARIABLE = "NIMBUS_ADMIN_SUBJECT"  # who the CLI's own tokens are for; among NIMBUS_ADMIN_ALLOWED_SUBJECTS
DEFAULT_SUBJECT = "cli"
SECRET_VARIABLE = "NIMBUS_JWT_SECRET"  # noqa: S105 - the name of a variable
TTL_S = 300.0  # one command; a follower of a log asks again


def choose_token(given: str | None, audience: Audience, *, role: str = "read") -> str:
    """The given JWT; or one minted here from NIMBUS_JWT_SECRET, also where the documents' commands give that secret."""
    secret = os.environ.get(SECRET_VARIABLE, "")
    if given and given != secret:
        if given.count(".") == 2 and given.isascii() and given.isprintable():
            return given
        raise Refused(f"--token takes a JWT; a secret belongs into {SECRET_VARIABLE}, and then no --token is needed")
    subject = os.environ.get(SUBJECT_VARIABLE) or DEFAULT_SUBJECT
    key = find_admin_key()
    return render_token(key, subject=subject, audience=audience, now_s=time.time(), ttl_s=TTL_S, claims={"role": role})


def find_admin_key() -> SigningKey:
    """The key of NIMBUS_JWT_SECRET; Refused where there is none."""
    secret = os.environ.get(SECRET_VARIABLE, "")
    if not secret:
        raise Refused(f"no credential: export {SECRET_VARIABLE} (`nimbus up` writes it), or give a JWT by --token")
    return hmac_key(secret)
