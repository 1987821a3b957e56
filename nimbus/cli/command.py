"""The `nimbus` command: finds the subcommand, loads only that one, and turns errors into one line and an exit code.

No rule of the business lives here. `nimbus run` must start quickly, so nothing is imported before it is needed;
the list that `nimbus --help` prints is written out below for the same reason. Called by `nimbus/__main__.py`, and by
the commands that are also modules of their own (`python -m nimbus.cli.jobs`).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import click

from nimbus.cli.invocation import Invocation
from nimbus.model.errors import NimbusError
from nimbus.runtime.masking import mask_crashes, mask_text

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("nimbus.cli.run:run", "Run one command in a fresh microVM; its exit status is ours."),
    "demo": ("nimbus.cli.demo:demo", "A whole job, from a GitHub webhook to an empty host, with a fake GitHub."),
    "up": ("nimbus.cli.up:up", "Start the whole stack on this machine; Ctrl-C stops it."),
    "jobs": ("nimbus.cli.jobs:jobs", "List, submit and cancel jobs."),
    "orgs": ("nimbus.cli.orgs:orgs", "Organisations: what they hold, their limits, their own labels."),
    "hosts": ("nimbus.cli.hosts:hosts", "Hosts: what they do and have left; cordon, drain, forget."),
    "report": ("nimbus.cli.report:report", "Snapshots across services: jobs, a job's output, each service's health."),
    "logs": ("nimbus.cli.logs:logs", "Read or follow the output of a job."),
    "doctor": ("nimbus.cli.doctor:doctor", "Whether this host can run microVMs, and what mends it."),
    "vms": ("nimbus.cli.vms:vms", "This host's microVMs: list, inspect, console; purge what a crash left."),
    "assets": ("nimbus.cli.assets:assets", "Build, list and verify what guests boot from."),
    "snapshots": ("nimbus.cli.snapshots:snapshots", "The templates that machines boot from: build, list, verify, gc."),
    "pool": ("nimbus.cli.pool:pool", "The machines that wait for jobs on this host."),
    "agent": ("nimbus.cli.agent:agent", "Run this host's agent, look at it, drain it."),
    "auth": ("nimbus.cli.auth:auth", "Mint the token with which an agent enrols."),
    "cache": ("nimbus.cli.cache:cache", "Mint a token for the cache and the registry."),
    "admin": ("nimbus.cli.admin:admin", "What the operator of the whole service does."),
}

EPILOG = """\
\b
Examples:
  nimbus assets build                    once: kernel, initramfs and disk for guests
  nimbus run -- uname -a                 a command in a microVM, gone when it ends
  nimbus run --memory 512M -- sh -c 'free -m; nproc'
  nimbus up --sim                        the whole service with a fake GitHub
  nimbus jobs recent                     what ran
"""

INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
PIPE_CLOSED = 141  # 128 + SIGPIPE: the reader of our output went away


def give_interrupt_back() -> None:
    """SIGINT raises KeyboardInterrupt again, now that all is loaded; ignored it stays where our caller ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class LazyGroup(click.Group):
    """A group whose commands are imported when called, and listed without being imported."""

    listed: ClassVar[Mapping[str, tuple[str, str]]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.listed)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.listed:
            return None
        module, _, attribute = self.listed[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.listed[cmd_name][0]} is no click command")
        give_interrupt_back()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in self.listed.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nimbus", prog_name="nimbus")
def cli() -> None:
    """Self-hosted CI: one throw-away microVM per job, on hosts you own."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The single errors inside nested exception groups, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def explain(error: BaseException) -> int:
    """Print the one line that an error deserves and give its exit code; raise again what is a bug."""
    found = list(leaves(error))
    ours = [leaf for leaf in found if isinstance(leaf, NimbusError)]
    if ours and all(isinstance(leaf, NimbusError | KeyboardInterrupt) for leaf in found):
        for leaf in ours:
            print(f"nimbus: {mask_text(str(leaf))}", file=sys.stderr)
        return ours[0].exit_code
    if found and all(isinstance(leaf, KeyboardInterrupt) for leaf in found):
        return INTERRUPTED
    raise error


def run_command(arguments: Sequence[str], group: click.Group = cli) -> int:
    """One call of `nimbus` with these arguments: its exit status."""
    mask_crashes()
    try:
        result = group.main(args=list(arguments), prog_name="nimbus", standalone_mode=False, obj=Invocation())
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; give it a place that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (NimbusError, KeyboardInterrupt, BaseExceptionGroup) as error:
        return explain(error)
    return result if isinstance(result, int) else 0
