"""The second net: what it hides and what it leaves."""

from __future__ import annotations

import base64
import itertools
import json
import random
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.logging_pipeline.ingest.masknet import CUT_BYTES
from nimbus.logging_pipeline.ingest.needles import NEEDLE_BYTES
from nimbus.logging_pipeline.rows import Source
from tests.unit.logging_pipeline.nets import BODY, CUT, INNOCENT, PEM, SECRET, TOKENS, Known, Net, hide, letters

NAMED = {
    "AWS, secret": ("AWS_SECRET_ACCESS_KEY=", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""),
    "AWS, secret in JSON": ('{"SecretAccessKey": "', "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", '"}'),
    "Azure, signature": ("https://a.blob.core.windows.net/c/b?sv=2024&sig=", letters(43) + "%3D", "&se=1"),
    "Azure, account key": ("DefaultEndpointsProtocol=https;AccountKey=", letters(86) + "==", ";x=y"),
    "Slack, hook": ("https://hooks.slack.com/services/", "T00000000/B00000000/" + letters(24), " ok"),
    "bearer": ("> Authorization: Bearer ", letters(30), ""),
    "bearer, opaque and short": ("authorization: bearer ", "abcdefgh", ""),
    "bearer in a dict": ("{'Authorization': 'token ", letters(40), "'}"),
    "bearer without a header": ("curl -H bearer ", letters(30), " x"),
    "basic": ("Authorization: Basic ", base64.b64encode(b"user:password").decode(), ""),
    "basic without a header": ("sent Basic ", base64.b64encode(b"user:password").decode(), " to"),
    "a URL": ("git clone https://user:", "hunter2", "@example.com/x.git"),
    "a URL of a database": ("postgres://ci:", "p@ss!w0rd", "@db:5432/ci"),
}


ESCAPED = ["\x1b[1;32m{}\x1b[0m", '{{"log": "a\\n{}\\nb"}}', "https://h/?q=a%20{}%20b"]


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize(
    "around", ["{}", "export TOKEN={}", 'x: "{}",', "remote: {} (expired)", "[{}]", "({})é", *ESCAPED]
)
def test_a_token_of_known_shape_is_hidden_wherever_it_stands(token: str, around: str) -> None:
    assert hide(around.format(token), values=()) == [around.format("***")]


@pytest.mark.parametrize(("before", "value", "after"), NAMED.values(), ids=NAMED)
def test_a_secret_that_its_surroundings_tell_is_hidden_and_they_are_not(before: str, value: str, after: str) -> None:
    assert hide(before + value + after, values=()) == [before + "***" + after]


def test_several_secrets_of_one_line_are_hidden_each() -> None:
    line = "a {} b https://u:{}@h/x c {}"
    tokens = (TOKENS["npm"], "hunter2", TOKENS["a JWT"])
    assert hide(line.format(*tokens), values=()) == [line.format("***", "***", "***")]


_RANDOM = random.Random(7)


def test_digests_ids_and_base64_of_ordinary_output_stay_as_they_are() -> None:
    random_base64 = [base64.b64encode(_RANDOM.randbytes(57)).decode() for _ in range(2000)]
    random_hex = [_RANDOM.randbytes(32).hex() for _ in range(2000)]
    lines = [*INNOCENT, *random_base64, *random_hex]
    assert hide(*lines, values=()) == lines


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote(SECRET),
        quote(SECRET, safe="").lower(),
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        json.dumps(SECRET).replace("/", "\\/"),
    ],
)
def test_a_registered_secret_is_hidden_as_it_is_and_encoded(form: str) -> None:
    [line] = hide(f"a {form} b")
    assert form.strip('"') not in line
    assert (line[:2], line[-2:]) == ("a ", " b")
    assert "***" in line


@pytest.mark.parametrize("before", ["", "u", "us", "use", "user:"])
@pytest.mark.parametrize("after", ["", "\n", ":x"])
def test_a_registered_secret_is_hidden_in_base64_wherever_it_begins(before: str, after: str) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        coded = encode((before + SECRET + after).encode()).decode()
        [line] = hide(f"x={coded};")
        shown = line.removeprefix("x=").removesuffix(";").replace("***", "")
        assert len(shown) <= len(before) * 4 // 3 + len(after) * 4 // 3 + 6


def test_base64_that_a_program_wrapped_over_lines_is_hidden() -> None:
    value = letters(200)
    coded = base64.b64encode(value.encode()).decode()
    wrapped = [coded[at : at + 76] for at in range(0, len(coded), 76)]
    assert hide("key:", *wrapped, "done", values=(value,))[:4] == ["key:", "***", "***", "***"]


def test_a_value_of_several_lines_is_hidden_line_by_line() -> None:
    value = "first line of it\n  second line of it\nshort\n"
    assert hide("first line of it", "> second line of it", "short", values=(value,)) == ["***", "> ***", "short"]


def test_another_orgs_secret_is_none_of_ours() -> None:
    net = Net()
    assert net.feed(f"x {SECRET}", source=Source(2, 7, 1)) == [f"x {SECRET}"]


def test_text_that_is_no_ascii_keeps_every_character_around_a_secret() -> None:
    secret = "pässwörd-日本"
    lines = [f"é {secret} ☃", "日本", f"🎉{secret}🎉", "ende"]
    assert hide(*lines, values=(secret,)) == ["é *** ☃", "日本", "🎉***🎉", "ende"]


@pytest.mark.parametrize("at", range(1, len(SECRET)))
def test_a_secret_that_a_cut_line_divides_is_hidden_on_both_sides_also_in_two_requests(at: int) -> None:
    line = "x" * (CUT - at) + SECRET[:at]
    first = Net()
    together = first.feed(line, SECRET[at:] + " rest")
    second = Net()
    apart = second.feed(line) + second.feed(SECRET[at:] + " rest")
    for shown in (together, apart):
        assert shown == ["x" * (CUT - at) + "***", "*** rest"]


def test_a_secret_over_three_rows_of_three_requests_is_hidden() -> None:
    net = Net(Known((SECRET * 3,)))
    text = SECRET * 3
    shown = net.feed(text[:50]) + net.feed(text[50:80]) + net.feed(text[80:] + " rest")
    assert shown == ["***", "***", "*** rest"]


def test_a_line_between_two_halves_on_another_stream_does_not_part_them() -> None:
    net = Net()
    shown = [*net.feed(SECRET[:20]), *net.feed("other", stream="stderr"), *net.feed(SECRET[20:])]
    assert shown == ["***", "other", "***"]


@given(
    cuts=st.lists(st.integers(1, 59), max_size=6, unique=True),
    ends=st.sets(st.integers(0, 6)),
    form=st.sampled_from([SECRET, base64.b64encode(SECRET.encode()).decode().rstrip("="), quote(SECRET, safe="")]),
)
def test_however_a_secret_is_cut_into_rows_and_requests_less_than_its_half_is_shown(
    cuts: list[int], ends: set[int], form: str
) -> None:
    text = f"noise {form} noise"
    places = [0, *sorted(place for place in cuts if place < len(text)), len(text)]
    rows = [text[begin:end] for begin, end in itertools.pairwise(places)]
    net = Net()
    shown: list[str] = []
    request: list[str] = []
    for index, row in enumerate(rows):
        request.append(row)
        if index in ends or index == len(rows) - 1:
            shown += net.feed(*request)
            request = []
    told = "".join(shown)
    half = len(form) // 2
    assert not any(form[at : at + half] in told for at in range(len(form) - half))


def test_a_line_that_only_begins_as_a_secret_does_stays() -> None:
    net = Net()
    assert [*net.feed("it is correct"), *net.feed("-ish")] == ["it is correct", "-ish"]


def test_after_a_restart_the_end_of_a_secret_is_hidden_though_its_beginning_was_not_seen() -> None:
    net = Net()
    net.feed("x" * (CUT - 12) + SECRET[:12])
    restarted = Net(seq=net.seq)
    assert restarted.feed(SECRET[12:] + " rest") == ["*** rest"]


def test_a_request_that_comes_again_is_hidden_as_the_first_time() -> None:
    net = Net()
    net.feed("x" * (CUT - 12) + SECRET[:12])
    first = net.feed(SECRET[12:20])
    net.seq -= 1
    assert net.feed(SECRET[12:20], SECRET[20:] + " rest") == [*first, "*** rest"]


def test_a_token_that_a_cut_line_divides_is_hidden_on_both_sides() -> None:
    token = TOKENS["GitHub, fine-grained"]
    for at in (3, 9, 15, 25, 60):
        net = Net()
        line = "x" * (CUT - at - 1) + " "
        shown = net.feed(line + token[:at]) + net.feed(token[at:] + " rest")
        assert token[at:] not in shown[1]
        assert shown[1] == "*** rest"
        assert at < 11 or shown[0] == line + "***"


def test_a_token_in_two_pieces_of_a_slow_line_is_not_shown_whole() -> None:
    token = TOKENS["npm"]
    net = Net()
    assert net.feed("token " + token[:12]) + net.feed(token[12:] + " rest") == ["token " + token[:12], "*** rest"]


def test_a_word_below_a_token_at_a_lines_end_stays() -> None:
    assert hide(TOKENS["npm"], "deadbeef0123") == ["***", "deadbeef0123"]


@pytest.mark.parametrize("indent", ["", "    ", "2026-01-01T00:00:00.1234567Z ", "key | "])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_private_keys_lines_are_hidden_over_rows_and_requests(indent: str, size: int) -> None:
    net = Net()
    lines = [indent + line for line in PEM]
    shown = [text for at in range(0, len(lines), size) for text in net.feed(*lines[at : at + size])]
    assert shown == [lines[0], *["***"] * len(BODY), lines[-1]]
    assert net.feed("after", BODY[3]) == ["after", BODY[3]]


def test_a_private_key_on_one_line_is_hidden() -> None:
    text = '{"type": "service_account", "private_key": "' + "\\n".join(PEM) + '\\n", "client_email": "a@b"}'
    [shown] = hide(text)
    assert not any(line in shown for line in BODY[:25])
    assert shown.endswith('-----END RSA PRIVATE KEY-----\\n", "client_email": "a@b"}')


def test_a_private_key_that_never_ends_does_not_swallow_the_log() -> None:
    lines = [f"step {at} of the build, all is well" for at in range(500)]
    assert hide(PEM[0], *BODY[:3], *lines)[4:] == lines


def test_in_the_middle_of_a_private_key_after_a_restart_its_lines_are_hidden() -> None:
    net = Net(seq=100)
    assert net.feed(*BODY[5:], PEM[-1], "after") == [*["***"] * len(BODY[5:]), PEM[-1], "after"]


def test_rows_of_kinds_are_counted() -> None:
    net = Net()
    net.feed("a", TOKENS["npm"], f"{SECRET} {SECRET}", SECRET)
    assert net.counted == {"shape": 1, "registered": 2}


def test_what_is_remembered_of_a_stream_is_bounded() -> None:
    net = Net(Known(("ab" * 40_000,)))
    net.feed(*["ab" * (CUT_BYTES // 2)] * 3)
    [memory] = net.net._memory.values()
    assert len(memory.after["stdout"].tail) <= NEEDLE_BYTES
    assert len(memory.after["stdout"].begun) <= 4096
