"""The suite's watch over secrets: it finds a planted one wherever a test or a process of it leaves one."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from nimbus.model.scope import Action
from nimbus.wire.cachetokens import derive_cache_key, plan_claims, render_cache_token
from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.forge import app_key
from tests.secretforms import Forms

ROOT = Path(__file__).parents[2]
SECRET = "d41c/Sv+9f0a=Zk77-" + "planted here"
TOKEN = render_token(hmac_key("k" * 32), subject="x", audience=Audience.ADMIN, now_s=time.time(), ttl_s=60)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Below no session's folder: the watch over this very session would find what is planted."""
    with tempfile.TemporaryDirectory(prefix="nimbus-watched-") as name:
        yield Path(name)


def run_suite(folder: Path, **bodies: str) -> subprocess.CompletedProcess[str]:
    """A watched suite of a test for each body; `secret` is its environment's."""
    head = "import base64, logging, os, subprocess, sys\nfrom urllib.parse import quote\n\n"
    tests = [
        f"def test_{name}(tmp_path):\n    secret = os.environ['NIMBUS_PLANTED_SECRET']\n    {body}\n\n"
        for name, body in bodies.items()
    ]
    (folder / "test_planted.py").write_text(head + "".join(tests))
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "tests.secretwatch", "-p", "no:cacheprovider", "-p", "no:trio"]
    argv += ["--basetemp", str(folder / "base"), "-c", os.devnull, "--rootdir", str(folder), str(folder)]
    env = {**os.environ, "NIMBUS_PLANTED_SECRET": SECRET}
    return subprocess.run(argv, check=False, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)


def test_a_planted_secret_fails_the_session_and_is_named_wherever_it_stands(folder: Path) -> None:
    password = "x.Tq83hfLw09aa-zzz"
    url = f"{{'NIMBUS_DATABASE_URL': 'postgresql://me:{password}@db/x'}}"

    done = run_suite(
        folder,
        stdout="print(f'it is {secret}!')",
        stderr="print('one', secret, file=sys.stderr)",
        record="logging.getLogger('any').warning('with %s', secret)",
        process="subprocess.run(['sh', '-c', 'echo \"$NIMBUS_PLANTED_SECRET\"'])",
        file="(tmp_path / 'agent.log').write_text(f'a\\nb {secret} c\\n')",
        base64="print('Basic', base64.b64encode(b'me:' + secret.encode()).decode())",
        url="print('https://x/?key=' + quote(secret, safe=''))",
        child=f"subprocess.run(['sh', '-c', 'echo \"away: $NIMBUS_DATABASE_URL\"'], env={{**os.environ, **{url}}})",
    )

    assert done.returncode == 1, done.stdout
    assert "8 passed" in done.stdout
    told = done.stdout.partition("secrets in the output")[2]
    for name in ("stdout", "stderr", "record", "process", "base64", "url"):
        assert f"::test_{name} (Captured " in told, name
    assert "agent.log, line 2: NIMBUS_PLANTED_SECRET" in told
    assert "line 1: the password in NIMBUS_DATABASE_URL" in told
    assert password not in done.stdout
    assert SECRET not in done.stdout
    assert "planted here" not in done.stdout


def test_a_session_that_tells_nothing_passes(folder: Path) -> None:
    done = run_suite(folder, silent="print('nothing', len(secret)), (tmp_path / 'state').write_text(secret)")

    assert done.returncode == 0, done.stdout
    assert "none is in it" in done.stdout


def test_tokens_of_ours_are_known_by_their_form() -> None:
    claims = plan_claims(1, now_s=time.time(), ttl_s=60, actions=[Action.PULL])
    cache_token = render_cache_token(derive_cache_key("c" * 32), claims)
    told = {
        "a signed token of Nimbus'": TOKEN,
        "a cache token": cache_token,
        "a token of GitHub's": "ghs_16C7e42F292c6912E7710c838347Ae178B4a",
        "a private key": json.dumps(app_key().private_pem),
    }

    for what, text in told.items():
        assert [hit.what for hit in Forms().find(f"one\ntwo {text} three")] == [what]


def test_each_form_of_a_secret_is_found_at_every_place() -> None:
    forms = Forms()
    forms.learn("it", SECRET)

    for before in range(4):
        wrapped = b"?" * before + SECRET.encode() + b"?" * before
        for text in (base64.b64encode(wrapped), base64.urlsafe_b64encode(wrapped), quote(wrapped, safe="").encode()):
            assert list(forms.find(f"x\n{text.decode()}"))


def test_what_chance_would_find_is_not_looked_for() -> None:
    forms = Forms()
    forms.learn("short", "s3cret")
    forms.learn("plain", "x" * 40)

    assert len(forms) == 0
    assert list(forms.find(f"s3cret {'x' * 80}")) == []


def test_the_public_half_of_a_key_is_no_hit() -> None:
    forms = Forms()
    forms.learn("a key", app_key().private_pem)

    assert list(forms.find(app_key().public_pem)) == []
    assert list(forms.find(app_key().private_pem.replace("BEGIN PRIVATE", "").replace("\n", "\\n")))
