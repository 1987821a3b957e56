"""`nimbus agent`: this host's agent, as a command. The agent itself is nimbus.host_agent.main."""

from __future__ import annotations

import click


@click.group()
def agent() -> None:
    """Run this host's agent.

    \b
    NIMBUS_AGENT_ID=host-1 NIMBUS_CONTROL_PLANE_URL=http://plane:8000 \\
    NIMBUS_CONTROL_PLANE_TOKEN=$(nimbus auth --agent-id host-1) nimbus agent run
    """


@agent.command()
def run() -> None:
    """Lease machines and serve them until SIGTERM. Needs root, and the variables above.

    Whatever an earlier agent left on this host is torn down first. Exit status 75: another agent runs here.
    """
    from nimbus.host_agent.main import main  # late: `nimbus agent --help` needs no kernel

    main()
