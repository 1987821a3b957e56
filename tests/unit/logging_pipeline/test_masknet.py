"""The second net: what it hides, what it leaves, and that nobody's output makes it dear."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import secrets
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import quote

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.logging_pipeline.ingest.masknet import CUT_BYTES, MaskNet
from nimbus.logging_pipeline.ingest.needles import NEEDLE_BYTES, Needles
from nimbus.logging_pipeline.ingest.shapes import ALARMS, find_shapes
from nimbus.logging_pipeline.rows import Row, Source

SOURCE = Source(1, 7, 1)
SECRET = "correct-horse/battery+staple?9"
CUT = 64 * 1024


@dataclass
class Known:
    """A registry that holds what a test says, for org 1 alone."""

    values: tuple[str, ...] = (SECRET,)
    needles: Needles | None = None

    async def ensure(self, org_id: int) -> None:
        await trio.lowlevel.checkpoint()

    def find(self, org_id: int) -> Needles | None:
        if self.needles is None:
            self.needles = Needles(self.values)
        return self.needles if org_id == 1 else None


@dataclass
class Net:
    """A net and where its source's numbers stand."""

    registry: Known = field(default_factory=Known)
    counted: Counter[str] = field(default_factory=Counter)
    seq: int = 0

    def __post_init__(self) -> None:
        self.net = MaskNet(self.registry, self._count)

    def _count(self, kind: str, rows: int) -> None:
        self.counted[kind] += rows

    def feed(self, *messages: str, stream: str = "stdout", source: Source = SOURCE) -> list[str]:
        """What becomes of the next rows."""
        rows = [Row(self.seq + at, 1, stream, "info", text) for at, text in enumerate(messages)]
        self.seq += len(rows)
        hidden = self.net.hide(source, rows)
        assert [row.seq for row in hidden] == [row.seq for row in rows]
        return [row.message for row in hidden]


def hide(*messages: str, values: tuple[str, ...] = (SECRET,)) -> list[str]:
    return Net(Known(values)).feed(*messages)


def _jwt() -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "iat": 1516239022}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*coded, "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"])


def _letters(count: int) -> str:
    return "".join(random.Random(count).choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=count))


TOKENS = {
    "GitHub, classic": "ghp_" + _letters(36),
    "GitHub, OAuth": "gho_" + _letters(36),
    "GitHub, user to server": "ghu_" + _letters(36),
    "GitHub, installation": "ghs_" + _letters(36),
    "GitHub, refresh": "ghr_" + _letters(76),
    "GitHub, fine-grained": "github_pat_" + _letters(22) + "_" + _letters(59),
    "AWS, long": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS, session": "ASIA" + "Y34FZKBOKMUTVV7A",
    "Slack, bot": "xoxb-" + "123456789012-1234567890123-" + _letters(24),
    "Slack, app": "xapp-" + "1-A0123456789-1234567890123-" + _letters(32),
    "GitLab": "glpat-" + _letters(20),
    "GitLab, runner": "glrt-" + _letters(20),
    "npm": "npm_" + _letters(36),
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + _letters(60),
    "OpenAI": "sk-" + _letters(48),
    "OpenAI, project": "sk-proj-" + _letters(30) + "-" + _letters(30),
    "Anthropic": "sk-ant-" + "api03-" + _letters(60),
    "Stripe": "sk_live_" + _letters(24),
    "Stripe, restricted": "rk_test_" + _letters(24),
    "Google": "AIza" + _letters(35),
    "Docker Hub": "dckr_pat_" + _letters(27),
    "Vault": "hvs." + _letters(30),
    "a JWT": _jwt(),
    "a cache token of ours": f"v1.{_letters(16)}.{_letters(60)}.{_letters(43)}",
    "a runner's configuration": base64.b64encode(b'{".runner":"eyJhZ2VudElkIjoxfQ==",".credentials":"x"}').decode(),
}
NAMED = {
    "AWS, secret": ("AWS_SECRET_ACCESS_KEY=", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""),
    "AWS, secret in JSON": ('{"SecretAccessKey": "', "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", '"}'),
    "Azure, signature": ("https://a.blob.core.windows.net/c/b?sv=2024&sig=", _letters(43) + "%3D", "&se=1"),
    "Azure, account key": ("DefaultEndpointsProtocol=https;AccountKey=", _letters(86) + "==", ";x=y"),
    "Slack, hook": ("https://hooks.slack.com/services/", "T00000000/B00000000/" + _letters(24), " ok"),
    "bearer": ("> Authorization: Bearer ", _letters(30), ""),
    "bearer, opaque and short": ("authorization: bearer ", "abcdefgh", ""),
    "bearer in a dict": ("{'Authorization': 'token ", _letters(40), "'}"),
    "bearer without a header": ("curl -H bearer ", _letters(30), " x"),
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
_HEX = hashlib.sha256(b"x").hexdigest()
INNOCENT = [
    f"sha256:{_HEX}",
    f"  Digest: sha256:{_HEX}",
    f"#8 sha256:{_HEX} 3.42MB / 3.42MB 0.2s done",
    "HEAD is now at 1f0c3b2a9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a Merge pull request #12 from x/y",
    "job 6f1b7c1e-54b1-4c0e-9c64-2f8f1ad3d0a5 started",
    f'      "integrity": "sha512-{base64.b64encode(hashlib.sha512(b"x").digest()).decode()}",',
    "resolved https://registry.example.org/@types/node/-/node-20.1.0.tgz#0123456789abcdef0123456789abcdef01234567",
    "npm http fetch GET 200 https://registry.example.org/@babel%2fcore 120ms (cache miss)",
    "npm_config_registry=https://registry.example.org/ npm_package_name=thing",
    "Listening on http://localhost:8080/",
    "ssh://git@github.com:22/org/repo.git",
    "git@github.com:org/repo.git",
    "From https://github.com/actions/checkout * [new ref] 1f0c3b2 -> pull/12/merge",
    "[command]/usr/bin/git config --local http.https://github.com/.extraheader AUTHORIZATION: basic ***",
    "//# sourceMappingURL=data:application/json;base64,eyJ2ZXJzaW9uIjozLCJzb3VyY2VzIjpbXSwibWFwcGluZ3MiOiIifQ==",
    "Go module example.com/x v1.0.0 h1:" + base64.b64encode(hashlib.sha256(b"y").digest()).decode() + "=",
    "task-runner: disk-usage risk-assessment sk-fading-circle sk-chase-dot-before-animation-delay",
    "Basic authentication is not supported; Bearer authentication is",
    "WWW-Authenticate: Bearer realm=\"https://auth.example.org/token\",service=\"registry.example.org\"",
    "test_authorization: PASSED  tests/test_authorization.py::test_bearer",
    "secret_access_key: not set",
    "pypi-server 2.0  glob-parent 5.1.2  xoxo  AKIA",
    "ETA 00:01:02 [=====>     ] 50% 12.3 MB/s",
    "warning: The file -----BEGIN CERTIFICATE----- was found",
    "-----BEGIN CERTIFICATE-----",
    "MIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG9w0BAQUFADBaMQswCQYDVQQGEwJJ",
    "-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----",
    "2026-01-01T00:00:00.1234567Z ##[group]Run actions/checkout@v4",
    "user:password is not a URL, foo@1.0.0 is a package",
    "const re = /^[a-z]+:\\/\\/[^:]+:([^@]+)@/",
    "v1.2.3 v1.0.0-rc.1 v1.abc.def",
    " \x1b[32mPASS\x1b[0m src/a.test.ts (5.1 s)",
    "unicode: ünïcödé ☃ 日本語",
]  # fmt: skip


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
    value = _letters(200)
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


_BODY = [base64.b64encode(bytes([at]) * 48).decode() for at in range(1, 26)] + ["AQID", "Q=="]
PEM = ["-----BEGIN RSA PRIVATE KEY-----", *_BODY, "-----END RSA PRIVATE KEY-----"]


@pytest.mark.parametrize("indent", ["", "    ", "2026-01-01T00:00:00.1234567Z ", "key | "])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_private_keys_lines_are_hidden_over_rows_and_requests(indent: str, size: int) -> None:
    net = Net()
    lines = [indent + line for line in PEM]
    shown = [text for at in range(0, len(lines), size) for text in net.feed(*lines[at : at + size])]
    assert shown == [lines[0], *["***"] * len(_BODY), lines[-1]]
    assert net.feed("after", _BODY[3]) == ["after", _BODY[3]]


def test_a_private_key_on_one_line_is_hidden() -> None:
    text = '{"type": "service_account", "private_key": "' + "\\n".join(PEM) + '\\n", "client_email": "a@b"}'
    [shown] = hide(text)
    assert not any(line in shown for line in _BODY[:25])
    assert shown.endswith('-----END RSA PRIVATE KEY-----\\n", "client_email": "a@b"}')


def test_a_private_key_that_never_ends_does_not_swallow_the_log() -> None:
    lines = [f"step {at} of the build, all is well" for at in range(500)]
    assert hide(PEM[0], *_BODY[:3], *lines)[4:] == lines


def test_in_the_middle_of_a_private_key_after_a_restart_its_lines_are_hidden() -> None:
    net = Net(seq=100)
    assert net.feed(*_BODY[5:], PEM[-1], "after") == [*["***"] * len(_BODY[5:]), PEM[-1], "after"]


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


# --- hostile output ---------------------------------------------------------------------------------------------------


_FRAGMENTS = [
    *TOKENS.values(), *PEM, *INNOCENT, SECRET, SECRET[:12], SECRET[12:], "\x1b[31m", "%20", "\\n", "\n", "\r", " ",
    "é", "日本", "://", "user:pass@", "Bearer ", "AUTHORIZATION: ", "eyJ", "sig=", "", "\ud800", "\U0010ffff",
    "x" * CUT, "é" * (CUT // 2),
]  # fmt: skip
_TEXT = st.lists(st.sampled_from(_FRAGMENTS), max_size=4).map("".join)
_ROWS = st.lists(st.tuples(_TEXT, st.sampled_from(["stdout", "stderr"])), max_size=4)


@settings(deadline=None, max_examples=50)
@given(requests=st.lists(_ROWS, max_size=4), first=st.sampled_from([0, 5]))
def test_whatever_comes_every_row_leaves_and_none_shows_a_whole_secret(
    requests: list[list[tuple[str, str]]], first: int
) -> None:
    net = MaskNet(Known(), lambda kind, rows: None)
    seq = first
    for request in requests:
        rows = [Row(seq + at, 1, stream, "info", text) for at, (text, stream) in enumerate(request)]
        seq += len(rows)
        shown = net.hide(SOURCE, rows)
        assert [row.seq for row in shown] == [seq - len(rows) + at for at in range(len(rows))]
        assert not any(SECRET in row.message for row in shown)


def _hostile(size: int) -> list[str]:
    return [
        "a" * size,
        "ghp_" * (size // 4),
        "-eyJ" * (size // 4),
        "-eyJaaaaaaaaa.eyJ" * (size // 17),
        "://" * (size // 3),
        "://a:" * (size // 5),
        "authorization: bearer " * (size // 22),
        "-----BEGIN PRIVATE KEY-----" * (size // 27),
        "sig=" * (size // 4),
        "basic " * (size // 6),
    ]


def test_no_line_is_looked_at_more_often_than_its_length_allows() -> None:
    for size in (1000, 64_000):
        for line in _hostile(size):
            counting = CountingPattern()
            find_shapes(line.encode(), counting)
            assert counting.calls <= 10 + size // 64


@dataclass
class CountingPattern:
    """The shapes' alarms, counting how often they are asked for."""

    calls: int = 0

    def search(self, text: bytes, at: int) -> object:
        self.calls += 1
        return ALARMS.search(text, at)


def test_an_org_that_prints_the_beginnings_of_its_secrets_makes_no_search_longer_than_its_text_allows() -> None:
    alike = ["a" * (16 + at) + "b" for at in range(200)]
    nested = ["c" * (16 + at) for at in range(200)]
    needles = Needles([*alike, *nested])
    for size in (1_000, 10_000, 100_000):
        for text in (b"a" * size, b"c" * size, b"ac" * (size // 2)):
            found = needles.find(text)
            assert found.checks <= 64 + size // 16 + 201


def test_where_the_search_is_given_up_whole_rows_are_hidden() -> None:
    shown = hide("before", "a" * 40_000, "behind", values=tuple("a" * (16 + at) + "b" for at in range(200)))
    assert shown == ["before", "***", "***"]


def test_the_automaton_of_the_largest_registry_keeps_its_speed() -> None:
    """Its memory holds every state: else RE2 would fall back to a search whose time grows with the registry."""
    values = [secrets.token_urlsafe(480) for _ in range(200)]
    needles = Needles(values)
    assert needles.stem_bytes * 700 <= 128 * 2**20
    text = "".join(value[:15] for value in values).encode() * 20
    assert needles.find(text).spans == []
