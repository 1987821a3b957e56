"""GitHub's `installation` and `installation_repositories` webhooks: parsed JSON -> one frozen value.

Never decides what an installation may do. Called by the control plane's webhooks and inbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nimbus.wire.fields import Fields

_BACK = frozenset({"created", "unsuspend"})


@dataclass(frozen=True)
class InstallationEvent:
    """Where the App stands with one account, by one event. `back`: it begins to be served with this event."""

    action: str
    installation_id: int
    account_id: int
    login: str
    suspended: bool
    removed: bool
    back: bool


def read_installation(top: Mapping[str, object]) -> InstallationEvent:
    """The event in a delivery's JSON; Refused names the field that is wrong."""
    fields = Fields(top, "the delivery")
    action = fields.text("action", 64)
    installation = fields.child("installation")
    account = installation.child("account")
    return InstallationEvent(
        action=action,
        installation_id=installation.integer("id", low=1),
        account_id=account.integer("id", low=1),
        login=account.text("login", 256),
        suspended=action == "suspend" or (action != "unsuspend" and installation.has("suspended_at")),
        removed=action == "deleted",
        back=action in _BACK,
    )
