"""Settings: every spelling of a DSN, a clear line for each mistake, no value of a secret anywhere."""

from __future__ import annotations

import pytest

from nimbus.control_plane.settings import Settings
from nimbus.runtime.settings import normalise_dsn, read_settings, unknown_variables

GOOD = {
    "NIMBUS_GITHUB_APP_ID": "7",
    "NIMBUS_GITHUB_APP_PRIVATE_KEY": "pem",
    "NIMBUS_GITHUB_WEBHOOK_SECRET": "w" * 20,
    "NIMBUS_REDIS_URL": "redis://localhost:6379/0",
    "NIMBUS_DATABASE_URL": "postgresql+asyncpg://user:hunter2@host/nimbus_control",
    "NIMBUS_JWT_SECRET": "j" * 32,
    "NIMBUS_PUBLIC_BASE_URL": "https://nimbus.example",
    "NIMBUS_CACHE_SHARED_SECRET": "c" * 32,
    "NIMBUS_AGENT_TOKEN_SECRET": "a" * 32,
}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg"])
@pytest.mark.parametrize("rest", ["u:p@h/d", "localhost/d", "u@/d?host=/run/x&port=5432", "u:p%40%2F@[::1]:5433/d"])
def test_every_spelling_of_a_dsn_means_the_same_database(scheme: str, rest: str) -> None:
    assert normalise_dsn(f"{scheme}://{rest}") == f"postgresql://{rest}"


@pytest.mark.parametrize("dsn", ["mysql://x/y", "sqlite:///x", "postgresql", "", "host=x dbname=y"])
def test_another_database_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match="PostgreSQL"):
        normalise_dsn(dsn)


def test_the_documents_variables_are_enough(environ: pytest.MonkeyPatch) -> None:
    settings = read_settings(Settings)

    assert settings.database_url.get_secret_value() == "postgresql://user:hunter2@host/nimbus_control"
    assert settings.job_lease_ttl == 300
    assert settings.labels == ("nimbus",)


def test_the_command_of_a_runner_is_split_as_a_shell_does(environ: pytest.MonkeyPatch) -> None:
    assert read_settings(Settings).runner_argv == ("/usr/local/bin/nimbus-runner",)
    environ.setenv("NIMBUS_RUNNER_COMMAND", "/opt/runner/run.sh --name 'two words'")
    assert read_settings(Settings).runner_argv == ("/opt/runner/run.sh", "--name", "two words")


@pytest.mark.parametrize("command", ["  ", "run.sh 'half"])
def test_a_command_of_a_runner_that_is_none_is_refused(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    environ.setenv("NIMBUS_RUNNER_COMMAND", command)
    with pytest.raises(SystemExit):
        read_settings(Settings)
    assert "NIMBUS_RUNNER_COMMAND: " in capsys.readouterr().err


def test_no_secret_is_shown(environ: pytest.MonkeyPatch) -> None:
    shown = repr(read_settings(Settings))
    assert not any(secret in shown for secret in ("hunter2", "j" * 32, "c" * 32, "a" * 32, "w" * 20, "'pem'"))


def test_each_missing_or_wrong_variable_is_named_and_no_value_printed(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ.delenv("NIMBUS_REDIS_URL")
    environ.setenv("NIMBUS_PUBLIC_BASE_URL", "")
    environ.setenv("NIMBUS_JWT_SECRET", "too-short-secret")
    environ.setenv("NIMBUS_TRUSTED_PROXIES", "10.0.0.0/8, 10.0.0.1/16")
    environ.setenv("NIMBUS_DATABASE_URL", "mysql://u:hunter2@h/d")
    with pytest.raises(SystemExit) as ended:
        read_settings(Settings)

    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "NIMBUS_REDIS_URL: is required" in told
    assert "NIMBUS_PUBLIC_BASE_URL: is required" in told
    assert "NIMBUS_JWT_SECRET: needs at least 32 bytes" in told
    assert "NIMBUS_DATABASE_URL: a PostgreSQL address is needed" in told
    assert "NIMBUS_TRUSTED_PROXIES: '10.0.0.1/16' is no network" in told
    assert "hunter2" not in told
    assert "too-short-secret" not in told


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"NIMBUS_AGENT_TOKEN_SECRET": "j" * 32}, "NIMBUS_AGENT_TOKEN_SECRET: is the same as NIMBUS_"),
        ({"NIMBUS_JWT_SECRET_NEXT": "j" * 32}, "NIMBUS_JWT_SECRET_NEXT: is the same as NIMBUS_JWT_SECRET"),
        ({"NIMBUS_CACHE_SHARED_SECRET_PREVIOUS": "j" * 32}, "NIMBUS_CACHE_SHARED_SECRET_PREVIOUS: is the same as"),
        ({"NIMBUS_JWT_SECRET_PREVIOUS": "short"}, "NIMBUS_JWT_SECRET_PREVIOUS: needs at least 32 bytes"),
        ({"NIMBUS_KEY_PUBLISH_LEAD": "329"}, "NIMBUS_KEY_PUBLISH_LEAD: must be 330 at least"),
        ({"NIMBUS_KEY_ROTATION_INTERVAL": "599"}, "NIMBUS_KEY_ROTATION_INTERVAL: must be 0, or 600 at least"),
        ({"NIMBUS_SIGNING_KEY_NEXT": "pem"}, "NIMBUS_SIGNING_KEY_NEXT: stands beside NIMBUS_SIGNING_KEY only"),
    ],
)
def test_keys_that_could_not_do_their_work_are_refused_at_start(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: dict[str, str], why: str
) -> None:
    for name, value in settings.items():
        environ.setenv(name, value)
    with pytest.raises(SystemExit):
        read_settings(Settings)
    assert why in capsys.readouterr().err


def test_a_secret_that_changes_signs_first_and_is_accepted_with_those_beside_it(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("NIMBUS_JWT_SECRET_NEXT", "n" * 32)
    environ.setenv("NIMBUS_JWT_SECRET_PREVIOUS", "p" * 32)
    settings = read_settings(Settings)
    assert settings.jwt_secrets == ("j" * 32, "n" * 32, "p" * 32)
    assert (settings.agent_secrets, settings.cache_secrets) == (("a" * 32,), ("c" * 32,))
    assert not any(letter * 32 in repr(settings.shared_secrets) for letter in "jnpac")


def test_a_misspelt_variable_is_reported_and_another_rooms_is_not() -> None:
    environ = {**GOOD, "NIMBUS_JWT_SECRTE": "x", "NIMBUS_CACHE_MAX_BYTES": "1", "NIMBUS_SIM_BIND": "x", "HOME": "/"}
    assert unknown_variables([Settings], environ) == ["NIMBUS_JWT_SECRTE"]
