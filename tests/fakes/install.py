"""Puts the fakes into a folder as two programs, `firecracker` and `jailer`, and says what they are to do wrong.

Called by tests; the programs are found by NIMBUS_FC_BIN and NIMBUS_JAILER_BIN. Nothing of them needs our packages.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.faults import NAME

_ROOT = Path(__file__).parents[2]
# -I: an empty environment is what they get; -S: nothing of our packages is needed, and they start faster
_PROGRAM = """#!{python} -IS
import sys
sys.path.insert(0, {root!r})
from tests.fakes import {module}
def main(argv, *jailed):
    return {module}.main(argv, {folder!r}, *jailed)
if __name__ == "__main__":
    main(sys.argv)
"""


@dataclass(frozen=True)
class Fakes:
    """Where the two programs are."""

    folder: Path

    @property
    def firecracker(self) -> Path:
        return self.folder / "firecracker"

    @property
    def jailer(self) -> Path:
        return self.folder / "jailer"

    def set_faults(self, **faults: Any) -> None:
        """What faults.py describes; from the next call on."""
        new = self.folder / f"{NAME}.new"
        new.write_text(json.dumps(faults))
        new.chmod(0o644)
        new.rename(self.folder / NAME)


def install_fakes(folder: Path) -> Fakes:
    """The fakes in `folder`, which others may look into: a jailed VMM reads there what it is to do wrong."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder.chmod(0o755)
    fakes = Fakes(folder)
    for path, module in ((fakes.firecracker, "fake_firecracker"), (fakes.jailer, "fake_jailer")):
        text = _PROGRAM.format(python=sys.executable, root=str(_ROOT), module=module, folder=str(folder))
        path.write_text(text)
        path.chmod(0o755)
    return fakes
