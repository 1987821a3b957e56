"""Writes the C source of `nimbus.host._native` for cffi; called by native/Makefile, which compiles it.

The header is the cdef, so Python and C cannot disagree about a signature. Compiles nothing itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cffi

HEADER = Path(__file__).parent / "nimbus_host.h"


def read_cdef(header: Path) -> str:
    """The header without the preprocessor lines, which cffi does not parse."""
    return "\n".join(line for line in header.read_text().splitlines() if not line.startswith("#"))


def write_source(target: Path) -> None:
    ffi = cffi.FFI()
    ffi.cdef(read_cdef(HEADER))
    ffi.set_source("nimbus.host._native", '#include "nimbus_host.h"', py_limited_api=True)
    ffi.emit_c_code(str(target))


if __name__ == "__main__":
    write_source(Path(sys.argv[1]))
