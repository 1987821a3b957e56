"""The dice of GitHub's bad days: seeds, rates, independence of the kinds, and plans that are none."""

from __future__ import annotations

from dataclasses import fields

import pytest

from nimbus.model.errors import Refused
from nimbus.sim.faults import DeliveryFate, FaultPlan, Faults, RequestFate, RunnerFate, parse_plan
from tests.readme import ROOT

PAGE = ROOT / "docs" / "rehearsal.md"
THROWS = 5000  # with a rate of 0.3 the share lies within 0.3 +- 0.05 for any seed that one is likely to choose


def deliver(plan: str, count: int = THROWS) -> list[DeliveryFate]:
    faults = Faults(parse_plan(plan))
    return [faults.deliver(redelivery=False) for _ in range(count)]


def request(plan: str, count: int = THROWS, *, with_token: bool = True) -> list[RequestFate]:
    faults = Faults(parse_plan(plan))
    return [faults.request(with_token=with_token) for _ in range(count)]


def test_nothing_strikes_unless_it_is_asked_for() -> None:
    faults = Faults()
    assert faults.plan == FaultPlan() == parse_plan("{}")
    assert {faults.deliver(redelivery=False) for _ in range(THROWS)} == {DeliveryFate()}
    assert {faults.request(with_token=True) for _ in range(THROWS)} == {RequestFate()}
    assert {faults.runner(number).stolen for number in range(THROWS)} == {False}


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("lost", "lost"),
        ("unlisted", "unlisted"),
        ("duplicated", "duplicated"),
        ("answered_late", "answered_late"),
        ("reordered", "overtaken"),
        ("late", "late_s"),
    ],
)
def test_a_delivery_is_struck_as_often_as_its_rate_says(kind: str, field: str) -> None:
    fates = deliver(f'{{"seed": 7, "deliveries": {{"{kind}": 0.3}}}}')
    assert 0.25 < sum(bool(getattr(fate, field)) for fate in fates) / THROWS < 0.35


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("secondary_limit", 403),
        ("secondary_limit_unsaid", 403),
        ("too_many", 429),
        ("primary_limit", 403),
        ("token_expired", 401),
    ],
)
def test_a_request_is_refused_as_often_as_its_rate_says(kind: str, status: int) -> None:
    refused = [fate for fate in request(f'{{"seed": 7, "rest": {{"{kind}": 0.3}}}}') if fate.refused is not None]
    assert 0.25 < len(refused) / THROWS < 0.35
    assert {(fate.refused, fate.status) for fate in refused} == {(kind, status)}


@pytest.mark.parametrize(("kind", "field"), [("slow", "slow_s"), ("dropped", "dropped"), ("no_json", "no_json")])
def test_an_answer_is_spoiled_as_often_as_its_rate_says(kind: str, field: str) -> None:
    fates = request(f'{{"seed": 7, "rest": {{"{kind}": 0.3}}}}')
    assert 0.25 < sum(bool(getattr(fate, field)) for fate in fates) / THROWS < 0.35


@pytest.mark.parametrize("kind", [name for name in RunnerFate.__dataclass_fields__ if name != "list_lag_s"])
def test_a_runner_is_struck_as_often_as_its_rate_says(kind: str) -> None:
    faults = Faults(parse_plan(f'{{"seed": 7, "runners": {{"{kind}": 0.3}}}}'))
    assert 0.25 < sum(getattr(faults.runner(number), kind) for number in range(THROWS)) / THROWS < 0.35


def test_a_seed_tells_the_same_story_again_and_another_seed_another() -> None:
    plan = '{"seed": %d, "deliveries": {"lost": 0.5, "late": 0.5, "duplicated": 0.5}}'
    assert deliver(plan % 1, 100) == deliver(plan % 1, 100) != deliver(plan % 2, 100)


def test_a_rate_leaves_the_sequences_of_the_other_kinds_alone() -> None:
    alone = deliver('{"deliveries": {"lost": 0.3}}', 200)
    crowded = deliver('{"deliveries": {"lost": 0.3, "unlisted": 0.5, "duplicated": 1, "late": 0.9}}', 200)
    assert [fate.lost for fate in alone] == [fate.lost for fate in crowded]


def test_requests_and_runners_leave_the_dice_of_deliveries_alone() -> None:
    plan = parse_plan('{"deliveries": {"lost": 0.3}, "rest": {"outage": 0.3}, "runners": {"stolen": 0.3}}')
    alone, crowded = Faults(plan), Faults(plan)
    for number in range(100):
        crowded.request(with_token=True)
        crowded.runner(number)
        assert crowded.deliver(redelivery=False) == alone.deliver(redelivery=False)


def test_late_and_slow_are_within_their_range() -> None:
    fates = deliver('{"deliveries": {"late": 1, "late_s": [2, 3]}}')
    assert all(2 <= fate.late_s <= 3 for fate in fates)
    assert max(fate.late_s for fate in fates) - min(fate.late_s for fate in fates) > 0.9
    assert all(4 <= fate.slow_s <= 4 for fate in request('{"rest": {"slow": 1, "slow_s": [4, 4]}}'))


def test_redeliveries_are_never_unlisted_or_doubled_and_pass_where_they_are_to() -> None:
    plan = '{"deliveries": {"lost": 1, "unlisted": 1, "duplicated": 1%s}}'
    fate = Faults(parse_plan(plan % "")).deliver(redelivery=True)
    assert (fate.lost, fate.unlisted, fate.duplicated) == (True, False, False)
    assert Faults(parse_plan(plan % ', "redeliveries_pass": true')).deliver(redelivery=True) == DeliveryFate()


def test_an_outage_lasts_as_many_calls_as_it_is_to() -> None:
    fates = request('{"seed": 3, "rest": {"outage": 0.02, "outage_calls": 5}}')
    bursts, length = [], 0
    for fate in fates:
        if fate.refused is not None:
            length += 1
        elif length:
            bursts.append(length)
            length = 0
    assert len(bursts) > 20
    assert all(burst % 5 == 0 for burst in bursts)  # two may touch
    assert {fate.status for fate in fates if fate.refused is not None} == {500, 502, 503}


def test_only_a_token_expires() -> None:
    assert {fate.refused for fate in request('{"rest": {"token_expired": 1}}', 10, with_token=False)} == {None}


def test_a_runners_fate_stays_until_there_is_another_plan() -> None:
    faults = Faults(parse_plan('{"runners": {"stolen": 0.5}}'))
    fates = [faults.runner(number) for number in range(50)]
    assert [faults.runner(number) for number in reversed(range(50))] == list(reversed(fates))
    faults.set_plan(FaultPlan())
    assert not any(faults.runner(number).stolen for number in range(50))


def test_a_runner_that_is_forgotten_has_no_fate_left() -> None:
    faults = Faults(parse_plan('{"runners": {"stolen": 0.5}}'))
    fates = [faults.runner(number) for number in range(50)]
    faults.forget_runners(frozenset(range(25)))
    assert [faults.runner(number) for number in range(25)] == fates[:25]
    assert [faults.runner(number) for number in range(25, 50)] != fates[25:]


def test_another_plan_begins_its_dice_anew_and_the_counts_go_on() -> None:
    plan = parse_plan('{"deliveries": {"lost": 0.5}}')
    faults = Faults(plan)
    first = [faults.deliver(redelivery=False) for _ in range(50)]
    faults.count("deliveries.lost")
    faults.set_plan(plan)
    assert [faults.deliver(redelivery=False) for _ in range(50)] == first
    assert faults.report()["struck"] == {"deliveries.lost": 1}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"deliverys": {}}', "deliverys"),
        ('{"deliveries": {"lots": 0.1}}', "deliveries.lots"),
        ('{"deliveries": {"lost": 1.1}}', "deliveries.lost"),
        ('{"deliveries": {"lost": -0.1}}', "deliveries.lost"),
        ('{"deliveries": {"lost": "0.1"}}', "deliveries.lost"),
        ('{"deliveries": {"lost": true}}', "deliveries.lost"),
        ('{"deliveries": {"lost": NaN}}', "deliveries.lost"),
        ('{"deliveries": {"late_s": [3, 1]}}', "deliveries.late_s"),
        ('{"deliveries": {"late_s": [1, 1e9]}}', "deliveries.late_s"),
        ('{"rest": {"outage_calls": 0}}', "rest.outage_calls"),
        ('{"rest": {"retry_after_s": 0}}', "rest.retry_after_s"),
        ('{"runners": []}', "runners"),
        ('{"seed": null}', "seed"),
        ("[]", "faults"),
        ("nothing", "faults"),
        ("", "faults"),
    ],
)
def test_a_plan_that_is_none_is_refused_by_the_name_of_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(Refused, match=f"^{named}"):
        parse_plan(text)


def test_the_page_on_rehearsals_names_every_fault() -> None:
    page = PAGE.read_text()
    plan = FaultPlan()
    for group in (plan.deliveries, plan.rest, plan.runners):
        unnamed = [each.name for each in fields(group) if f"`{each.name}`" not in page]
        assert [name for name in unnamed if f"retry-after: {name}" not in page] == []
