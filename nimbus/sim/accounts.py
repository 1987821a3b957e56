"""The organisations of the fake GitHub: each has its own forge, its own limit and one installation of the App.

Who may be refused what, and why, is said here (GitHub's own reasons); `rest.py` answers accordingly. It tells of
a change to an installation through `tell` and never sends anything. `world.py` makes it, the routes look things up.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nimbus.model.errors import Conflict, NotFound, Unauthorized
from nimbus.sim.forge import Forge
from nimbus.sim.jobs import Job, Run, Runner
from nimbus.sim.limits import RateWindow

WHOLE = ""  # the scope of a refusal that holds for the whole account


class Refusal(enum.StrEnum):
    """Why GitHub refuses an App that holds a good token."""

    IP_ALLOW_LIST = "ip_allow_list"
    ACTIONS_DISABLED = "actions_disabled"
    RUNNERS_DISABLED = "runners_disabled"  # those of repositories; an organisation's own are another switch
    NO_PERMISSION = "no_permission"
    GROUP_FULL = "group_full"


@dataclass
class Account:
    """One organisation and the App's installation on it."""

    installation_id: int
    forge: Forge
    rate: RateWindow
    suspended_at_s: float | None = None
    removed: bool = False
    refusals: dict[str, frozenset[Refusal]] = field(default_factory=dict)  # by WHOLE, or a repository in lower case

    @property
    def owner(self) -> str:
        return self.forge.owner

    @property
    def listens(self) -> bool:
        """Whether the App is told of this account's events."""
        return self.suspended_at_s is None and not self.removed

    def refuses(self, refusal: Refusal, repo: str) -> bool:
        return any(refusal in self.refusals.get(scope, ()) for scope in {WHOLE, repo.lower()})

    def refuse(self, repo: str, refusals: frozenset[Refusal]) -> None:
        """From now on these, and no others, for the repository or the whole account."""
        self.refusals.pop(repo.lower(), None)
        if refusals:
            self.refusals[repo.lower()] = refusals


class Accounts:
    """All of them; the first is the one that is meant where none is named."""

    def __init__(self, owners: tuple[str, ...], first_id: int, make: Callable[[str, int], Account]) -> None:
        self._make = make
        self._all = {
            owner.lower(): make(owner, installation_id) for installation_id, owner in enumerate(owners, start=first_id)
        }
        self.tell: Callable[[Account, str], None] = lambda _account, _action: None

    def __iter__(self) -> Iterator[Account]:
        return iter(self._all.values())

    @property
    def first(self) -> Account:
        return next(iter(self))

    def named(self, owner: str | None) -> Account:
        """The account of that owner, the first where none is named."""
        if not owner:
            return self.first
        if owner.lower() not in self._all:
            raise NotFound(f"there is no organisation {owner!r}")
        return self._all[owner.lower()]

    def installed(self, owner: str) -> Account:
        """The same, where the App is installed on it."""
        account = self._all.get(owner.lower())
        if account is None or account.removed:
            raise NotFound("Not Found")
        return account

    def installation(self, installation_id: int) -> Account:
        for account in self:
            if account.installation_id == installation_id and not account.removed:
                return account
        raise NotFound("Not Found")

    # -- what is in them --------------------------------------------------------------------------

    def of_run(self, run_id: int) -> tuple[Forge, Run]:
        for account in self:
            if run_id in account.forge.runs:
                return account.forge, account.forge.runs[run_id]
        raise NotFound(f"there is no run {run_id}: without NIMBUS_SIM_STATE_DIR the sim forgets all when it stops")

    def of_job(self, job_id: int) -> tuple[Forge, Job]:
        for account in self:
            if job_id in account.forge.jobs:
                return account.forge, account.forge.jobs[job_id]
        raise NotFound(f"there is no job {job_id}")

    def of_runner(self, token: str) -> tuple[Forge, Runner]:
        """The runner that holds this token, seen alive now."""
        for account in self:
            runner = account.forge.find_runner(token)
            if runner is not None:
                account.forge.see(runner)
                return account.forge, runner
        raise Unauthorized("this runner is not registered, or no longer")

    # -- the App's installations ------------------------------------------------------------------

    def suspend(self, account: Account, at_s: float | None) -> None:
        """Suspend since then, or unsuspend; the App is told of a change."""
        if account.removed:
            raise Conflict(f"the App is not installed on {account.owner}")
        changed = (account.suspended_at_s is None) is not (at_s is None)
        account.suspended_at_s = at_s if changed else account.suspended_at_s
        if changed:
            self.tell(account, "unsuspend" if at_s is None else "suspend")

    def install(self, account: Account, *, installed: bool) -> None:
        """Remove the App from the account, or install it again under a new id, as GitHub would."""
        if account.removed is not installed:
            return
        account.removed, account.suspended_at_s = not installed, None
        if installed:
            account.installation_id = self._free_id()
        self.tell(account, "created" if installed else "deleted")

    def recall(self, owner: str, installation_id: int) -> Account:
        """An account of an earlier sim: it keeps its installation's id, whoever was to have it now."""
        for other in self:
            if other.installation_id == installation_id and other.owner.lower() != owner.lower():
                other.installation_id = self._free_id()
        if owner.lower() not in self._all:
            self._all[owner.lower()] = self._make(owner, installation_id)
        account = self._all[owner.lower()]
        account.installation_id = installation_id
        return account

    def _free_id(self) -> int:
        return 1 + max(account.installation_id for account in self)
