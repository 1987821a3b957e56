"""The `nimbus` command as a newcomer and a shell see it: help, exit codes, and what it does not load."""

from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest

from nimbus.cli.command import COMMANDS, INTERRUPTED, explain, run_command
from nimbus.cli.invocation import Invocation
from nimbus.model.errors import HostFault, Refused


def nimbus(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nimbus", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_command_with_its_purpose_and_examples() -> None:
    shown = nimbus("--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in COMMANDS)
    assert "nimbus run -- uname -a" in shown.stdout


def test_help_loads_no_command_and_no_event_loop() -> None:
    script = (
        "import sys; from nimbus.cli.command import run_command; status = run_command(['--help']);"
        "print([m for m in ('trio', 'nimbus.cli.run', 'nimbus.cli.jobs', 'httpx2') if m in sys.modules], status)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[] 0"


def test_an_unknown_command_exits_2_and_points_to_help() -> None:
    shown = nimbus("frobnicate")
    assert shown.returncode == 2
    assert "frobnicate" in shown.stderr
    assert "--help" in shown.stderr


def test_version_names_the_program() -> None:
    shown = nimbus("--version")
    assert shown.returncode == 0
    assert shown.stdout.startswith("nimbus, version ")


def test_an_error_of_ours_is_one_line_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(HostFault("no tun device: load the module tun")) == 125
    assert capsys.readouterr().err == "nimbus: no tun device: load the module tun\n"


def test_an_error_inside_groups_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    error = BaseExceptionGroup("outer", [ExceptionGroup("inner", [Refused("unknown image 'x'")])])
    assert explain(error) == 2
    assert "unknown image 'x'" in capsys.readouterr().err


def test_ctrl_c_inside_a_nursery_exits_130() -> None:
    assert explain(BaseExceptionGroup("nursery", [KeyboardInterrupt()])) == INTERRUPTED


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.RaisesGroup(Refused, ZeroDivisionError):
        explain(ExceptionGroup("nursery", [Refused("no"), ZeroDivisionError()]))


def test_the_exit_status_of_a_command_is_the_status_of_the_program() -> None:
    @click.group()
    def group() -> None:
        pass

    @group.command()
    @click.pass_context
    def seven(ctx: click.Context) -> None:
        ctx.exit(7)

    assert run_command(["seven"], group) == 7


def test_a_command_learns_when_the_program_was_entered() -> None:
    seen: list[Invocation] = []

    @click.group()
    def group() -> None:
        pass

    @group.command()
    @click.pass_obj
    def look(invocation: Invocation) -> None:
        seen.append(invocation)

    before = time.monotonic_ns()
    assert run_command(["look"], group) == 0
    assert before <= seen[0].main_entered_ns <= time.monotonic_ns()
