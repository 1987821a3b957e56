"""What all REST routes of the fake GitHub share: who may enter, GitHub's refusals, pages and tags.

Statuses and messages are GitHub's own where a source is named (issues of others who met them). It holds no state.
Called by `app_routes.py`, `run_routes.py` and `runner_routes.py`; `github_api.py` puts them together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TypeVar
from urllib.parse import urlencode

from quart import Response, g, request

from nimbus.model.errors import Forbidden, NotFound, Refused, Unauthorized
from nimbus.sim.accounts import Account, Refusal
from nimbus.sim.app_auth import InstallationToken
from nimbus.sim.callers import read_bearer, read_body
from nimbus.sim.limits import RateWindow
from nimbus.sim.world import World
from nimbus.wire.github import parse_json_object

MAX_PAGE = 100
DEFAULT_PAGE = 30
Item = TypeVar("Item")

# octokit/octokit.rb#1307
SUSPENDED = "This installation has been suspended"
# aquasecurity/trivy#10567, databricks/terraform-provider-databricks#5444
IP_ALLOW_LIST = (
    "Although you appear to have the correct authorization credentials, the `{owner}` organization has an IP allow "
    "list enabled, and your IP address is not permitted to access this resource."
)
# actions/actions-runner-controller#931; also where a repository is not among the App's
NO_PERMISSION = "Resource not accessible by integration"
# the words are those that ubicloud/ubicloud looks for; its status we do not know
ACTIONS_DISABLED = "GitHub Actions is disabled on this repository."
# the words are those that ubicloud/ubicloud looks for (#4654). They stand in `errors`, as text: runs-on/runs-on#417
# shows a client that expects a list there and is left without any reason
RUNNERS_DISABLED = "Repository level self-hosted runners are disabled on this repository"
# ggml-org/llama.cpp#7893, ubicloud/ubicloud#6102
GROUP_FULL = "Invalid Argument - Runner group {group_id} has reached max limit of 10000 runners."


class ForbiddenInErrors(Forbidden):
    """A refusal whose reason stands in `errors`; its `message` is only "Forbidden"."""


def reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(body), status, headers=dict(headers or {}), content_type="application/json")


async def read_json() -> dict[str, object]:
    raw = await read_body()
    return parse_json_object(raw) if raw.strip() else {}


# -- who may enter -------------------------------------------------------------------------------------------------


def enter_app(world: World) -> None:
    """For the App itself, by its JWT."""
    world.auth.check_app(read_bearer())
    _count(world.app_rate)


def enter(world: World, owner: str, repo: str, permission: str, *, write: bool = False) -> Account:
    """For an installation, by its token: the account of the path, if the token reaches it and nobody refuses."""
    token, account = enter_installation(world)
    if owner.lower() != account.owner.lower():
        raise NotFound("Not Found")  # another account's: GitHub does not say that it exists
    if account.refuses(Refusal.IP_ALLOW_LIST, repo):
        raise Forbidden(IP_ALLOW_LIST.format(owner=account.owner))
    reached = not repo or token.reaches(repo)
    if account.refuses(Refusal.NO_PERMISSION, repo) or not reached or not token.may(permission, write=write):
        raise Forbidden(NO_PERMISSION)
    return account


def enter_actions(world: World, owner: str, repo: str, permission: str, *, write: bool = False) -> Account:
    """The same for what belongs to Actions, which somebody may have switched off."""
    account = enter(world, owner, repo, permission, write=write)
    if account.refuses(Refusal.ACTIONS_DISABLED, repo):
        raise Forbidden(ACTIONS_DISABLED)
    return account


def enter_runners(world: World, owner: str, repo: str, *, write: bool) -> Account:
    """The same for a repository's or an organisation's runners; writing may add one."""
    permission = "administration" if repo else "organization_self_hosted_runners"
    account = enter_actions(world, owner, repo, permission, write=write)
    if repo and write and request.method == "POST" and account.refuses(Refusal.RUNNERS_DISABLED, repo):
        raise ForbiddenInErrors(RUNNERS_DISABLED)
    return account


def enter_installation(world: World) -> tuple[InstallationToken, Account]:
    """Whoever holds a token of an installation that is there; counted against its limit."""
    token = world.auth.check_token(read_bearer())
    try:
        account = world.accounts.installation(token.installation_id)
    except NotFound:
        raise Unauthorized("Bad credentials") from None  # the App was removed from the account
    if account.suspended_at_s is not None:
        raise Forbidden(SUSPENDED)
    _count(account.rate)
    return token, account


def check_group(account: Account, repo: str, group_id: int, full_group: int) -> None:
    if group_id == full_group or account.refuses(Refusal.GROUP_FULL, repo):
        raise Refused(GROUP_FULL.format(group_id=group_id))


def _count(rate: RateWindow) -> None:
    g.rate = rate  # first: the answer to a request over the limit tells of the limit too
    rate.count()


# -- pages and tags ------------------------------------------------------------------------------------------------


def page_of(items: Sequence[Item]) -> tuple[list[Item], dict[str, str]]:
    """The page that the request asks for, and the Link header to the others."""
    size = page_size()
    last = max(1, -(-len(items) // size))
    number = max(request.args.get("page", 1, type=int), 1)
    links: dict[str, int] = {}
    if number > 1:
        links |= {"prev": number - 1, "first": 1}
    if number < last:
        links |= {"next": number + 1, "last": last}
    return list(items[(number - 1) * size : number * size]), link_header(
        {rel: {"page": str(page)} for rel, page in links.items()}
    )


def page_size() -> int:
    return min(max(request.args.get("per_page", DEFAULT_PAGE, type=int), 1), MAX_PAGE)


def link_header(links: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """GitHub's header from relations to the parameters in which their addresses differ from this one."""
    parts = (
        f'<{request.base_url}?{urlencode({**request.args, **changed})}>; rel="{rel}"' for rel, changed in links.items()
    )
    header = ", ".join(parts)
    return {"Link": header} if header else {}


async def tag(response: Response) -> Response:
    """With its ETag; 304 and free of charge where the caller has exactly this already."""
    if request.method != "GET" or response.status_code != 200:
        return response
    body = await response.get_data(as_text=False)
    etag = f'W/"{hashlib.sha256(body).hexdigest()}"'
    response.headers["ETag"] = etag
    if etag not in {each.strip() for each in request.headers.get("If-None-Match", "").split(",")}:
        return response
    if "rate" in g:
        g.rate.refund()
    kept = {name: response.headers[name] for name in ("ETag", "Link") if name in response.headers}
    return Response(b"", 304, headers=kept)
