"""Takes the named files out of a .tgz, and nothing else. Never lets the archive choose a path, a mode or an owner.

Called by `fetch.py`, with an archive whose sha256 has been checked.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from nimbus.model.errors import HostFault

_CHUNK_BYTES = 1 << 20


def unpack_members(archive: Path, title: str, wanted: Mapping[str, Path], max_bytes: int) -> None:
    """Write each member of `wanted` to its path. HostFault where one is absent, there twice, no plain file, or too big.

    `max_bytes` bounds all of them together: what a small archive unpacks to is its author's choice.
    """
    missing = set(wanted)
    left = max_bytes
    try:
        with tarfile.open(archive, mode="r|gz") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if name not in wanted:
                    continue
                if name not in missing:
                    raise _odd(title, f"it holds {name} twice")
                if not member.isreg():
                    raise _odd(title, f"{name} in it is no plain file")
                left -= member.size
                if left < 0:
                    raise _odd(title, f"{name} makes more than {max_bytes} bytes unpacked")
                content = tar.extractfile(member)
                assert content is not None  # noqa: S101 - so it is for a plain file
                _copy(content, wanted[name])
                missing.discard(name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _odd(title, str(error)) from None
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's, which the caller explains
        raise _odd(title, str(error)) from None  # gzip's own: no gzip file, or a damaged one
    if missing:
        raise _odd(title, f"it does not hold {min(missing)}")


def _copy(content: IO[bytes], target: Path) -> None:
    with target.open("xb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            file.write(chunk)


def _odd(title: str, what: str) -> HostFault:
    return HostFault(f"the archive of {title} cannot be used: {what}")
