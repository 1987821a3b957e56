"""The way into the `nimbus` command: silences Python's own handler of Ctrl-C, then loads what was asked for.

Imports nothing while that handler is in force: it raises KeyboardInterrupt wherever the interpreter stands, and inside
a class body that becomes a RuntimeError with a traceback and status 1. Until the command is loaded (`cli/command.py`
gives the handler back) Ctrl-C simply ends the process: nothing was begun. Importing this module changes nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # built in; the public `signal` is itself a file of class bodies
import sys


def main() -> None:
    """Entry point of `nimbus`, `nimbus-cli` and `python -m nimbus`."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # ignored (nohup, a script's `&`) it stays
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from nimbus.cli.command import run_command  # late: see above

    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
