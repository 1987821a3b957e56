"""A workflow file as the rehearsal understands it: text -> frozen values.

A small, honest subset of GitHub's syntax: `name`, `on`, `env`, and jobs with `name`, `runs-on`, `env`,
`environment` and steps of `name`, `run`, `env`, `if`. Whatever else a file holds is refused by name, so
that nobody believes it was rehearsed. It never runs anything. `control_api` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from nimbus.model.errors import Refused
from nimbus.wire.github import MAX_LABEL_CHARS, MAX_LABELS

MAX_WORKFLOW_BYTES = 256 * 1024
MAX_JOBS = 256  # GitHub's limit for a matrix, far above what a rehearsal needs
MAX_STEPS = 1000
_JOB_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # what a shell can export
_CONDITIONS = {"success()": "success", "always()": "always", "failure()": "failure"}


@dataclass(frozen=True)
class StepSpec:
    """One `run:` step. `env` already holds what the workflow and the job set."""

    name: str
    run: str
    env: Mapping[str, str]
    condition: str  # success, always or failure: of the steps before it


@dataclass(frozen=True)
class JobSpec:
    """One job. `environment` names a gate that somebody must open before the job is queued."""

    key: str
    name: str
    labels: tuple[str, ...]
    environment: str | None
    steps: tuple[StepSpec, ...]


@dataclass(frozen=True)
class Workflow:
    """A whole file."""

    name: str
    jobs: tuple[JobSpec, ...]


def parse_workflow(text: str) -> Workflow:
    """The workflow in `text`; Refused says what is wrong or not rehearsed, and where."""
    top = _mapping(_load(text), "the workflow")
    # YAML 1.1 reads the key `on` as the boolean true
    _only(top, {"name", "on", True, "env", "jobs"}, "the workflow")
    env = _env(top, "the workflow")
    jobs = _mapping(top.get("jobs"), "jobs")
    if not 0 < len(jobs) <= MAX_JOBS:
        raise Refused(f"jobs: between 1 and {MAX_JOBS} are needed")
    return Workflow(
        name=_line(top.get("name", "workflow"), "name"),
        jobs=tuple(_job(key, value, env) for key, value in jobs.items()),
    )


def _load(text: str) -> object:
    if len(text.encode("utf-8", "replace")) > MAX_WORKFLOW_BYTES:
        raise Refused(f"the workflow is larger than {MAX_WORKFLOW_BYTES // 1024} KiB")
    try:
        # an alias lets a short text stand for a huge document, and no workflow of GitHub's needs one
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise Refused("the workflow uses a YAML alias, which the rehearsal does not follow")
        loaded: object = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise Refused(f"the workflow is not valid YAML{where}") from None
    return loaded


def _job(key: object, value: object, env: Mapping[str, str]) -> JobSpec:
    if not isinstance(key, str) or not _JOB_KEY.fullmatch(key):
        raise Refused(f"{str(key)[:100]!r} is no job id: letters, digits, _ and - are")
    where = f"jobs.{key}"
    job = _mapping(value, where)
    _only(job, {"name", "runs-on", "env", "environment", "steps"}, where)
    merged = {**env, **_env(job, where)}
    steps = job.get("steps")
    if not isinstance(steps, list) or not 0 < len(steps) <= MAX_STEPS:
        raise Refused(f"{where}.steps: a list of 1 to {MAX_STEPS} steps is needed")
    environment = job.get("environment")
    return JobSpec(
        key=key,
        name=_line(job.get("name", key), f"{where}.name"),
        labels=_labels(job.get("runs-on"), where),
        environment=None if environment is None else _line(environment, f"{where}.environment"),
        steps=tuple(_step(step, f"{where}.steps[{index}]", merged) for index, step in enumerate(steps)),
    )


def _step(value: object, where: str, env: Mapping[str, str]) -> StepSpec:
    step = _mapping(value, where)
    if "uses" in step:
        raise Refused(f"{where}: `uses` needs GitHub's own runner; the rehearsal runs `run:` steps only")
    _only(step, {"name", "run", "env", "if"}, where)
    run = step.get("run")
    if not isinstance(run, str) or not run.strip():
        raise Refused(f"{where}.run: a script is needed")
    condition = str(step.get("if", "success()")).strip().removeprefix("${{").removesuffix("}}").strip()
    if condition not in _CONDITIONS:
        raise Refused(f"{where}.if: always(), failure() and success() are rehearsed")
    _plain(run, f"{where}.run")
    return StepSpec(
        name=_line(step.get("name", f"Run {run.strip().splitlines()[0][:80]}"), f"{where}.name"),
        run=run,
        env={**env, **_env(step, where)},
        condition=_CONDITIONS[condition],
    )


def _labels(value: object, where: str) -> tuple[str, ...]:
    labels = [value] if isinstance(value, str) else value
    if not isinstance(labels, list) or not 0 < len(labels) <= MAX_LABELS:
        raise Refused(f"{where}.runs-on: a label or a list of labels is needed")
    return tuple(_line(label, f"{where}.runs-on", limit=MAX_LABEL_CHARS) for label in labels)


def _env(parent: Mapping[object, object], where: str) -> dict[str, str]:
    env: dict[str, str] = {}
    for name, value in _mapping(parent.get("env", {}), f"{where}.env").items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise Refused(f"{where}.env: {str(name)[:100]!r} is no name of an environment variable")
        if isinstance(value, bool):
            env[name] = str(value).lower()  # as GitHub writes it
        elif isinstance(value, str | int | float):
            env[name] = _plain(str(value), f"{where}.env.{name}")
        else:
            raise Refused(f"{where}.env.{name}: text or a number is needed")
    return env


def _mapping(value: object, where: str) -> dict[object, object]:
    if not isinstance(value, dict):
        raise Refused(f"{where}: a mapping is needed")
    return value


def _only(value: Mapping[object, object], known: set[object], where: str) -> None:
    for key in value:
        if key not in known:
            raise Refused(f"{where}: {str(key)[:100]!r} is not part of what the rehearsal understands")


def _line(value: object, where: str, *, limit: int = 255) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise Refused(f"{where}: text is needed")
    line = _plain(str(value), where).strip()
    if not 0 < len(line) <= limit or not line.isprintable():
        raise Refused(f"{where}: one line of at most {limit} printable characters is needed")
    return line


def _plain(text: str, where: str) -> str:
    if "${{" in text:
        raise Refused(f"{where}: expressions are not evaluated in the rehearsal")
    if "\0" in text:
        raise Refused(f"{where}: a NUL byte cannot be part of it")
    if any("\ud800" <= char <= "\udfff" for char in text):  # an escape in YAML makes one
        raise Refused(f"{where}: half of a character cannot be part of it")
    return text
