"""Secrets in a job's output: hidden however the output is cut, and whoever goes on with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.host_agent.output.masking import (
    ALIKE_MAX,
    CHUNK_BYTES,
    MASKS_MAX,
    VALUE_BYTES_MAX,
    Edge,
    Masker,
    MaskSet,
    find_secrets,
    parse_edge,
    parse_masks,
)

letters = st.text("ab", min_size=4, max_size=9).map(str.encode)
words = st.one_of(
    st.text("ab", max_size=6).map(str.encode),
    st.sampled_from(
        [b"\n", b"\r\n", b" ", b"::", b"::add-mask::", b"\n::add-mask::", b"\n \t::add-mask::abba\n", b"%0A"]
    ),
    letters,
)
texts = st.lists(words, max_size=25).map(b"".join)


@dataclass
class Stored:
    """What an agent has on its disk: the text, and what the next one needs."""

    text: bytes = b""
    safe: int = 0
    edge: Edge = field(default_factory=Edge)
    notes: str = ""


def mask_whole(text: bytes, secrets: list[bytes]) -> bytes:
    """All of it in one piece."""
    masks = MaskSet()
    for secret in secrets:
        masks.add(secret)
    return b"".join(part.text for part in Masker(masks).feed(text, final=True))


def mask_text(text: str, *secrets: str) -> str:
    return mask_whole(text.encode(), [secret.encode() for secret in secrets]).decode()


@given(texts, st.lists(letters, max_size=4), st.lists(st.integers(0, 200), max_size=12))
def test_how_output_is_cut_changes_nothing_of_what_is_stored(
    text: bytes, secrets: list[bytes], cuts: list[int]
) -> None:
    masks = MaskSet()
    for secret in secrets:
        masks.add(secret)
    masker, stored = Masker(masks), b""
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    for low, high in pairwise(edges):
        stored += b"".join(part.text for part in masker.feed(text[low:high]))
    stored += b"".join(part.text for part in masker.feed(b"", final=True))
    assert stored == mask_whole(text, secrets)


@given(texts, st.lists(letters, max_size=4), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_an_agent_killed_after_any_piece_is_followed_by_one_that_stores_the_same(
    text: bytes, secrets: list[bytes], lengths: list[int]
) -> None:
    masks = MaskSet()
    for secret in secrets:
        masks.add(secret)
    disk = Stored(notes=masks.render())
    for length in lengths:  # each agent gets this much from the first byte that is not safe, and is killed
        masks = parse_masks(disk.notes)
        for part in Masker(masks, parse_edge(disk.edge.word)).feed(text[disk.safe : disk.safe + length]):
            disk = Stored(disk.text + part.text, disk.safe + part.taken, part.edge, masks.render())
    rest = Masker(parse_masks(disk.notes), disk.edge).feed(text[disk.safe :], final=True)
    assert disk.text + b"".join(part.text for part in rest) == mask_whole(text, secrets)


@given(texts, st.lists(letters, min_size=1, max_size=4))
def test_no_secret_is_ever_in_what_is_stored(text: bytes, secrets: list[bytes]) -> None:
    stored = mask_whole(text, secrets)
    assert not [secret for secret in secrets if secret in stored]


@given(texts, st.lists(letters, max_size=4))
def test_what_is_held_back_is_less_than_the_longest_secret_or_a_command(text: bytes, secrets: list[bytes]) -> None:
    masks = MaskSet()
    for secret in secrets:
        masks.add(secret)
    masker = Masker(masks)
    for at in range(len(text)):
        list(masker.feed(text[at : at + 1]))
        may_be_command = b"::add-mask::".startswith(masker.held[:12])
        assert may_be_command or len(masker.held) < max(map(len, masks.known))


def test_a_value_is_hidden_in_both_spellings_of_the_line_that_tells_it() -> None:
    assert mask_text("::add-mask::hunter2\r\nI am hunter2!\n") == "::add-mask::***\r\nI am ***!\n"
    assert mask_text("  ::add-mask::100%25sure\n100%sure\n") == "  ::add-mask::***\n***\n"
    assert mask_text("say ::add-mask::hunter2\nhunter2\n") == "say ::add-mask::hunter2\nhunter2\n"
    assert mask_text("::add-mask::unfinished") == "::add-mask::***"


def test_a_value_of_several_lines_is_hidden_line_by_line() -> None:
    text = "::add-mask::first line%0D%0A  second line%0Aabc\nsecond line, first line, abc\n"
    assert mask_text(text) == "::add-mask::***\n***, ***, abc\n"


def test_secrets_that_overlap_are_one() -> None:
    assert mask_text("xabcdefx", "abcd", "cdef") == "x***x"
    assert mask_text("abcdabcd", "abcd") == "******"
    assert mask_text("abcdef abcd", "abcd", "abcdef") == "*** ***"


def test_a_long_secret_is_hidden_whole_though_it_is_kept_in_chunks() -> None:
    secret = "".join(chr(97 + number * number % 26) for number in range(3 * CHUNK_BYTES + 7))
    stored = mask_text(f"<{secret}>", secret)
    assert set(stored[1:-1]) == {"*"}
    assert (stored[0], stored[-1]) == ("<", ">")


def test_short_values_and_switches_hide_nothing() -> None:
    assert mask_text("::add-mask::abc\nabc\n") == "::add-mask::***\nabc\n"
    env = {
        "USE_TOKEN": "true",
        "API_KEY": "k3y!",
        "KEYBOARD": "qwerty",
        "npm_token": "t",
        "JITCONFIG": "e30=",
        "PATH": "/",
    }
    assert find_secrets(env) == ("k3y!", "t", "e30=")


@pytest.mark.parametrize(
    "asked",
    [
        "".join(f"::add-mask::secret {number:05d} {number:05d}\n" for number in range(MASKS_MAX + 1)),
        "".join(f"::add-mask::{number:08d}\n" for number in range(ALIKE_MAX + 1)),
        f"::add-mask::{'x' * (VALUE_BYTES_MAX + 1)}\n",
        f"::add-mask::{'x' * (VALUE_BYTES_MAX + 100)}",
    ],
    ids=["number", "alike", "length", "unfinished"],
)
def test_nothing_is_told_after_more_was_asked_for_than_can_be_hidden(asked: str) -> None:
    masks = MaskSet()
    masker = Masker(masks)
    told = b"".join(part.text for part in masker.feed(asked.encode()))
    told += b"".join(part.text for part in masker.feed(b"\nthe next secret\n", final=True))
    assert masks.overflowed
    assert parse_masks(masks.render()).overflowed
    assert told == b"::add-mask::***\n" * told.count(b"\n")


def test_the_worst_masks_cost_a_piece_of_output_only_so_much() -> None:
    masks = MaskSet()
    for length in range(ALIKE_MAX):
        masks.add(b"a" * (CHUNK_BYTES - length - 1) + b"b")
    masker = Masker(masks)
    began = time.process_time()
    for _ in range(8):
        list(masker.feed(b"a" * 16384 + b"c"))
    assert time.process_time() - began < 60  # some seconds where it is slow; hours where each byte cost all masks
    assert not masks.overflowed
