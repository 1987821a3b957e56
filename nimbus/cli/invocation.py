"""When the `nimbus` command was entered, handed to commands as click's context object. Never grows into settings.

Made by `nimbus/cli/command.py`; read by `nimbus run --json` (with `click.pass_obj`), so that a bench can tell the
interpreter's start and the imports from the work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Invocation:
    """One call of the command. The clock is CLOCK_MONOTONIC: the same for all processes of a host."""

    main_entered_ns: int = field(default_factory=time.monotonic_ns)
