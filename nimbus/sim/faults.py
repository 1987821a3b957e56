"""GitHub's bad days: which faults there are, how often each strikes, and what strikes this delivery, request or runner.

Pure: dice and numbers, no clock, no I/O, nothing that acts. Each kind of fault has dice of its own, thrown for every
delivery, request or runner whether its rate is zero or not: a rate that changes leaves the others' sequences alone.
`deliveries.py`, `faults_rest.py` and `faults_runners.py` act on the fates, `faults_api.py` sets and shows the plan.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from nimbus.model.errors import Refused

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError("the shorter time comes first")
    return span


Rate = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
WholeSeconds = Annotated[int, Field(ge=1, le=86_400)]  # as GitHub's headers have them
Span = Annotated[tuple[Seconds, Seconds], AfterValidator(_ordered)]


@dataclass(frozen=True)
class DeliveryFaults:
    """What may happen to a webhook."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    lost: Rate = 0.0  # never sent; listed as failed with status 502
    unlisted: Rate = 0.0  # never made: no redelivery can find it
    duplicated: Rate = 0.0  # made twice under one GUID
    reordered: Rate = 0.0  # sent after a later one
    reorder_within_s: Seconds = 10.0  # or after this time, where no later one comes
    late: Rate = 0.0
    late_s: Span = (1.0, 30.0)
    answered_late: Rate = 0.0  # sent, and listed as timed out whatever the answer was
    redeliveries_pass: bool = False  # redeliveries are spared


@dataclass(frozen=True)
class RestFaults:
    """What may happen to a REST call."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    secondary_limit: Rate = 0.0  # 403 with retry-after
    secondary_limit_unsaid: Rate = 0.0  # 403 without
    too_many: Rate = 0.0  # 429 with retry-after
    retry_after_s: WholeSeconds = 1
    primary_limit: Rate = 0.0  # 403, nothing remaining
    primary_reset_s: WholeSeconds = 2
    outage: Rate = 0.0  # 500, 502, 503: a burst begins
    outage_calls: Annotated[int, Field(ge=1, le=100_000)] = 3  # that fail in a row
    token_expired: Rate = 0.0  # 401, and the installation token is void from then on
    slow: Rate = 0.0  # it is done at once, and answered after slow_s
    slow_s: Span = (1.0, 5.0)
    dropped: Rate = 0.0  # it is done, and the connection ends without an answer
    no_json: Rate = 0.0  # it is done, and the answer's body is no JSON


@dataclass(frozen=True)
class RunnerFaults:
    """What may happen to a runner."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    stolen: Rate = 0.0  # comes online: a job that nobody made it for is waiting
    taken_before_delete: Rate = 0.0  # is deleted while idle: a job was faster, the deletion is refused
    busy_refused: Rate = 0.0  # is deleted while idle: refused as busy, for busy_refused_s
    busy_refused_s: Seconds = 5.0
    assignment_lost: Rate = 0.0  # accepts its first job: it is another's again, the runner stays idle
    idle_dropped: Rate = 0.0  # is removed after idle_dropped_s without a job
    idle_dropped_s: Seconds = 5.0
    listed_late: Rate = 0.0  # the list has it only list_lag_s after its registration
    listed_offline: Rate = 0.0  # the list has it as offline for list_lag_s after it came online
    list_lag_s: Span = (1.0, 5.0)


@dataclass(frozen=True)
class FaultPlan:
    """All faults; none unless asked for."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    seed: int = 0
    deliveries: DeliveryFaults = field(default_factory=DeliveryFaults)
    rest: RestFaults = field(default_factory=RestFaults)
    runners: RunnerFaults = field(default_factory=RunnerFaults)


_PLANS: TypeAdapter[FaultPlan] = TypeAdapter(FaultPlan)


def parse_plan(raw: str | bytes) -> FaultPlan:
    """The plan that this JSON describes; what it does not name is off. Refused names each field that is wrong."""
    try:
        return _PLANS.validate_json(raw)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        where = (".".join(str(part) for part in each["loc"]) or "faults" for each in problems)
        raise Refused("; ".join(f"{name}: {each['msg']}" for name, each in zip(where, problems, strict=True))) from None


@dataclass(frozen=True)
class DeliveryFate:
    """What happens to one attempt to deliver."""

    unlisted: bool = False
    duplicated: bool = False
    lost: bool = False
    answered_late: bool = False
    overtaken: bool = False
    late_s: float = 0.0


@dataclass(frozen=True)
class RequestFate:
    """What happens to one REST call. `refused` names a fault of `RestFaults`: then nothing is done."""

    refused: str | None = None
    status: int = 0
    wait_s: int = 0  # what the refusal's header tells the caller
    slow_s: float = 0.0
    dropped: bool = False
    no_json: bool = False


@dataclass(frozen=True)
class RunnerFate:
    """What happens to one runner, should it come to it."""

    stolen: bool = False
    taken_before_delete: bool = False
    busy_refused: bool = False
    assignment_lost: bool = False
    idle_dropped: bool = False
    listed_late: bool = False
    listed_offline: bool = False
    list_lag_s: float = 0.0


class Dice:
    """One sequence of numbers for each kind, all from one seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kinds: dict[str, random.Random] = {}

    def _of(self, kind: str) -> random.Random:
        if kind not in self._kinds:
            self._kinds[kind] = random.Random(f"{self._seed}/{kind}")  # noqa: S311 -- for a play, not for secrets
        return self._kinds[kind]

    def strikes(self, kind: str, rate: float) -> bool:
        return self._of(kind).random() < rate

    def between(self, kind: str, span: tuple[float, float]) -> float:
        return self._of(kind).uniform(*span)

    def one_of(self, kind: str, values: tuple[int, ...]) -> int:
        return self._of(kind).choice(values)


class Faults:
    """The plan in force, its dice, and how often each fault struck since the sim began."""

    def __init__(self, plan: FaultPlan | None = None) -> None:
        self.struck: Counter[str] = Counter()
        self.set_plan(plan or FaultPlan())

    def set_plan(self, plan: FaultPlan) -> None:
        """Another plan from now on, its dice at their beginning. The counts go on."""
        self.plan = plan
        self._dice = Dice(plan.seed)
        self._outage_left = 0
        self._runners: dict[int, RunnerFate] = {}

    def count(self, kind: str) -> None:
        """A fault did strike: `deliveries.lost`, `rest.dropped`, `runners.stolen` and so on."""
        self.struck[kind] += 1

    def deliver(self, *, redelivery: bool) -> DeliveryFate:
        """The fate of one more attempt."""
        faults, strikes = self.plan.deliveries, self._dice.strikes
        fate = DeliveryFate(
            unlisted=strikes("deliveries.unlisted", faults.unlisted) and not redelivery,
            duplicated=strikes("deliveries.duplicated", faults.duplicated) and not redelivery,
            lost=strikes("deliveries.lost", faults.lost),
            answered_late=strikes("deliveries.answered_late", faults.answered_late),
            overtaken=strikes("deliveries.reordered", faults.reordered),
            late_s=self._span("deliveries.late", faults.late, faults.late_s),
        )
        return DeliveryFate() if redelivery and faults.redeliveries_pass else fate

    def request(self, *, with_token: bool) -> RequestFate:
        """The fate of one more REST call; `with_token`: it comes with an installation token."""
        faults, strikes = self.plan.rest, self._dice.strikes
        outage = strikes("rest.outage", faults.outage)
        outage_status = self._dice.one_of("rest.outage.status", (500, 502, 503))
        refusals = (
            ("primary_limit", strikes("rest.primary_limit", faults.primary_limit), 403, faults.primary_reset_s),
            ("secondary_limit", strikes("rest.secondary_limit", faults.secondary_limit), 403, faults.retry_after_s),
            (
                "secondary_limit_unsaid",
                strikes("rest.secondary_limit_unsaid", faults.secondary_limit_unsaid),
                403,
                0,
            ),
            ("too_many", strikes("rest.too_many", faults.too_many), 429, faults.retry_after_s),
            ("token_expired", strikes("rest.token_expired", faults.token_expired) and with_token, 401, 0),
        )
        done = RequestFate(
            slow_s=self._span("rest.slow", faults.slow, faults.slow_s),
            dropped=strikes("rest.dropped", faults.dropped),
            no_json=strikes("rest.no_json", faults.no_json),
        )
        if self._outage_left == 0 and outage:
            self._outage_left = faults.outage_calls
        if self._outage_left > 0:
            self._outage_left -= 1
            return RequestFate(refused="outage", status=outage_status)
        for kind, struck, status, wait_s in refusals:
            if struck:
                return RequestFate(refused=kind, status=status, wait_s=wait_s)
        return done

    def runner(self, runner_id: int) -> RunnerFate:
        """The fate of this runner, the same whenever asked, until another plan."""
        if runner_id not in self._runners:
            faults, strikes = self.plan.runners, self._dice.strikes
            self._runners[runner_id] = RunnerFate(
                stolen=strikes("runners.stolen", faults.stolen),
                taken_before_delete=strikes("runners.taken_before_delete", faults.taken_before_delete),
                busy_refused=strikes("runners.busy_refused", faults.busy_refused),
                assignment_lost=strikes("runners.assignment_lost", faults.assignment_lost),
                idle_dropped=strikes("runners.idle_dropped", faults.idle_dropped),
                listed_late=strikes("runners.listed_late", faults.listed_late),
                listed_offline=strikes("runners.listed_offline", faults.listed_offline),
                list_lag_s=self._dice.between("runners.list_lag", faults.list_lag_s),
            )
        return self._runners[runner_id]

    def forget_runners(self, known: frozenset[int]) -> None:
        """Runners that are no more need no fate."""
        self._runners = {runner_id: fate for runner_id, fate in self._runners.items() if runner_id in known}

    def report(self) -> dict[str, object]:
        """What GET /sim/faults shows: the whole plan, and how often each fault struck."""
        return {"plan": asdict(self.plan), "struck": dict(sorted(self.struck.items()))}

    def _span(self, kind: str, rate: float, span: tuple[float, float]) -> float:
        struck, length_s = self._dice.strikes(kind, rate), self._dice.between(f"{kind}_s", span)
        return length_s if struck else 0.0
