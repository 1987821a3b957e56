"""A template's key is equal only where everything that matters is, and says in words what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Refused
from nimbus.model.template import TemplateKey, digest_recipe, is_digest, parse_key, plan_gc, render_key
from nimbus.model.vm import Shape
from tests.unit.storage.templates import CPU, KEY, sha256

TEXTS = [name for name, value in asdict(KEY).items() if isinstance(value, str)]
CPU_TEXTS = list(asdict(CPU))


def change(key: TemplateKey, name: str) -> TemplateKey:
    """The same key with another value of one leaf."""
    if name in CPU_TEXTS:
        return replace(key, cpu=replace(key.cpu, **{name: sha256("another")}))
    if name in asdict(key.shape):
        return replace(key, shape=replace(key.shape, **{name: asdict(key.shape)[name] + 1}))
    return replace(key, **{name: sha256("another")})  # type: ignore[arg-type]


LEAVES = [*TEXTS, *CPU_TEXTS, *asdict(Shape())]


def test_equal_keys_have_one_digest_and_it_can_name_a_folder() -> None:
    assert KEY.digest() == replace(KEY).digest()
    assert is_digest(KEY.digest())


@pytest.mark.parametrize("name", LEAVES)
def test_whatever_differs_gives_another_digest_and_is_named(name: str) -> None:
    other = change(KEY, name)
    assert other.digest() != KEY.digest()
    (difference,) = KEY.differences(other)
    assert "made with" in difference


def test_differences_say_what_it_was_and_what_is_needed() -> None:
    other = replace(KEY, host_kernel="6.2.0", shape=Shape(cpus=2))
    assert KEY.differences(other) == (
        "kernel of the host: made with 6.1.0, needed is 6.2.0",
        "vCPUs: made with 1, needed is 2",
    )
    assert KEY.differences(KEY) == ()


def test_a_digest_is_shown_short_in_a_difference() -> None:
    (difference,) = KEY.differences(replace(KEY, vmm_sha256="7" * 64))
    assert difference == "binary of the VMM: made with 555555555555…, needed is 777777777777…"


@pytest.mark.parametrize("name", TEXTS)
def test_a_key_with_a_gap_cannot_be_made(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(KEY, **{name: ""})  # type: ignore[arg-type]


def test_a_key_with_a_short_digest_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="vmm_sha256 is not 64 hex digits"):
        replace(KEY, vmm_sha256="5" * 63)


def test_a_key_survives_the_way_through_json() -> None:
    assert parse_key(json.loads(json.dumps(render_key(KEY)))) == KEY


def drop_cpu(document: dict[str, Any]) -> None:
    del document["cpu"]


def add_word(document: dict[str, Any]) -> None:
    document["weather"] = "fine"


def number_for_text(document: dict[str, Any]) -> None:
    document["accel"] = 1


def null_in_cpu(document: dict[str, Any]) -> None:
    document["cpu"]["microcode"] = None


def no_shape(document: dict[str, Any]) -> None:
    document["shape"] = {"cpus": 0}


@pytest.mark.parametrize("spoil", [drop_cpu, add_word, number_for_text, null_in_cpu, no_shape])
def test_what_is_no_key_is_not_read_as_one(spoil: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(json.dumps(render_key(KEY)))
    spoil(document)
    with pytest.raises((ValueError, KeyError, TypeError, Refused)):
        parse_key(document)


@given(st.lists(st.text(max_size=5), max_size=5), st.lists(st.text(max_size=5), max_size=5))
def test_two_recipes_have_one_digest_only_if_they_are_the_same_words(one: list[str], other: list[str]) -> None:
    assert (digest_recipe(one) == digest_recipe(other)) == (one == other)


@dataclass(frozen=True)
class Made:
    """As much of a template as collecting garbage needs."""

    key: TemplateKey
    created_at: float

    @property
    def digest(self) -> str:
        return self.key.digest()


def made(number: int, at: float, **changes: Any) -> Made:
    return Made(replace(KEY, recipe_sha256=sha256(str(number)), **changes), at)


def test_the_newest_of_each_image_and_shape_stay() -> None:
    old, new = made(1, 10), made(2, 20)
    other_shape, other_image = made(3, 5, shape=Shape(cpus=2)), made(4, 5, image="debian")
    assert plan_gc([old, new, other_shape, other_image], keep=1) == (old,)


def test_what_is_in_use_stays_however_old_it_is() -> None:
    old, new = made(1, 10), made(2, 20)
    assert plan_gc([old, new], keep=0, in_use={old.digest}) == (new,)


def test_what_is_too_old_goes_even_as_the_newest() -> None:
    old, new = made(1, 10), made(2, 20)
    assert plan_gc([old, new], keep=5, oldest=15) == (old,)
    assert plan_gc([old, new], keep=5, oldest=25) == (new, old)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 2)), max_size=12), st.integers(0, 4))
def test_never_more_than_asked_for_are_kept_and_never_an_older_one_for_a_newer(
    drawn: list[tuple[int, int]], keep: int
) -> None:
    templates = [made(n, at, image=f"image{kind}") for n, (at, kind) in enumerate(drawn)]
    gone = plan_gc(templates, keep=keep)
    for image in {one.key.image for one in templates}:
        ages = [one.created_at for one in templates if one.key.image == image]
        left = [one.created_at for one in templates if one.key.image == image and one not in gone]
        assert sorted(left, reverse=True) == sorted(ages, reverse=True)[:keep]
