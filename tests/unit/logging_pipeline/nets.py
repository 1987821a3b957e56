"""A net for tests, and what it is tried with: tokens, a key, and lines that only look like them."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field

import trio

from nimbus.logging_pipeline.ingest.masknet import MaskNet
from nimbus.logging_pipeline.ingest.needles import Needles
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


def letters(count: int) -> str:
    return "".join(random.Random(count).choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=count))


TOKENS = {
    "GitHub, classic": "ghp_" + letters(36),
    "GitHub, OAuth": "gho_" + letters(36),
    "GitHub, user to server": "ghu_" + letters(36),
    "GitHub, installation": "ghs_" + letters(36),
    "GitHub, refresh": "ghr_" + letters(76),
    "GitHub, fine-grained": "github_pat_" + letters(22) + "_" + letters(59),
    "AWS, long": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS, session": "ASIA" + "Y34FZKBOKMUTVV7A",
    "Slack, bot": "xoxb-" + "123456789012-1234567890123-" + letters(24),
    "Slack, app": "xapp-" + "1-A0123456789-1234567890123-" + letters(32),
    "GitLab": "glpat-" + letters(20),
    "GitLab, runner": "glrt-" + letters(20),
    "npm": "npm_" + letters(36),
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + letters(60),
    "OpenAI": "sk-" + letters(48),
    "OpenAI, project": "sk-proj-" + letters(30) + "-" + letters(30),
    "Anthropic": "sk-ant-" + "api03-" + letters(60),
    "Stripe": "sk_live_" + letters(24),
    "Stripe, restricted": "rk_test_" + letters(24),
    "Google": "AIza" + letters(35),
    "Docker Hub": "dckr_pat_" + letters(27),
    "Vault": "hvs." + letters(30),
    "a JWT": _jwt(),
    "a cache token of ours": f"v1.{letters(16)}.{letters(60)}.{letters(43)}",
    "a runner's configuration": base64.b64encode(b'{".runner":"eyJhZ2VudElkIjoxfQ==",".credentials":"x"}').decode(),
}
BODY = [base64.b64encode(bytes([at]) * 48).decode() for at in range(1, 26)] + ["AQID", "Q=="]
PEM = ["-----BEGIN RSA PRIVATE KEY-----", *BODY, "-----END RSA PRIVATE KEY-----"]
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
