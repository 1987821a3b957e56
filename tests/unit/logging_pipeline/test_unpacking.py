"""Compressed bodies: read where they are one member or frame of bounded size, else refused before they cost much."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable

import pytest
from backports import zstd

from nimbus.logging_pipeline.ingest.unpacking import MAX_BODY_BYTES, MAX_RATIO, unpack
from nimbus.model.errors import Refused

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}
PLAIN = os.urandom(600) * 4


@pytest.mark.parametrize("encoding", PACK)
def test_what_was_packed_comes_out(encoding: str) -> None:
    assert unpack(PACK[encoding](PLAIN), encoding) == PLAIN
    assert unpack(PLAIN, "identity") == PLAIN


@pytest.mark.parametrize("encoding", PACK)
def test_what_is_cut_short_doubled_or_has_something_behind_it_is_refused(encoding: str) -> None:
    packed = PACK[encoding](PLAIN)
    for bad in (packed[:-3], packed + packed, packed + b"\0", b"", b"neither", packed[:10]):
        with pytest.raises(Refused):
            unpack(bad, encoding)


@pytest.mark.parametrize("encoding", PACK)
def test_many_tiny_members_or_frames_are_not_unpacked_one_after_the_other(encoding: str) -> None:
    with pytest.raises(Refused):
        unpack(PACK[encoding](b"") * 100_000, encoding)


@pytest.mark.parametrize("encoding", PACK)
def test_a_bomb_is_told_by_its_size_and_by_its_ratio(encoding: str) -> None:
    assert unpack(PACK[encoding](bytes(64 * 2**20)), encoding) is None  # large and of a mad ratio
    assert unpack(PACK[encoding](bytes(200_000)), encoding) is None  # small, of a mad ratio
    assert unpack(PACK[encoding](os.urandom(40_000) * 110), encoding) is None  # large, of a ratio that logs have too


@pytest.mark.parametrize("encoding", PACK)
def test_the_largest_body_is_taken(encoding: str) -> None:
    plain = (os.urandom(MAX_BODY_BYTES // 64) * 64)[:MAX_BODY_BYTES]
    packed = PACK[encoding](plain)
    assert len(plain) < len(packed) * MAX_RATIO
    assert unpack(packed, encoding) == plain


def test_a_window_that_would_take_much_memory_is_refused() -> None:
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    frame = packer.compress(os.urandom(100_000)) + packer.flush()
    with pytest.raises(Refused, match="window"):
        unpack(frame, "zstd")
