"""Templates of the writable disk that each VM gets over the shared root: empty, sparse, made once per size.

Never makes a VM's own disk: the agent clones the template (`host/disk.py`) and the clone dies with the VM.
"""

from __future__ import annotations

from pathlib import Path

from nimbus.model.errors import Refused
from nimbus.storage.content import ImageStore, publish, staged_file
from nimbus.storage.ext4 import make_ext4
from nimbus.storage.sparse import copy_without_zeros

MIN_OVERLAY_MIB = 16
MAX_OVERLAY_MIB = 1 << 20  # 1 TiB: sparse, but a typing error all the same
_FORMAT = 2  # part of the name, so that a later layout never meets an older template
_UUID = "6e696d62-7573-4000-8000-00000000000d"


def overlay_template(store: ImageStore, mib: int) -> Path:
    """Path of the empty overlay of `mib` MiB; about 30 ms the first time, one stat afterwards."""
    if not MIN_OVERLAY_MIB <= mib <= MAX_OVERLAY_MIB:
        raise Refused(f"an overlay of {mib} MiB is not possible: {MIN_OVERLAY_MIB} to {MAX_OVERLAY_MIB} are")
    path = store.templates / f"overlay{_FORMAT}-{mib}.img"
    try:
        if path.stat().st_size == mib << 20:
            return path
    except FileNotFoundError:
        pass
    with staged_file(store) as dense, staged_file(store) as sparse:
        make_ext4(dense, mib << 20, uuid=_UUID, label="overlay")
        copy_without_zeros(dense, sparse)
        publish(sparse, path)
    return path
