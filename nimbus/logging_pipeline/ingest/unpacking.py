"""A compressed body made plain: one gzip member or one zstd frame, bounded in size, ratio and window. Pure.

Never takes a second member or frame, or anything else behind the first: many tiny ones are a way to make much work of
few bytes, and no sender of ours makes them. Called by the ingest route.
"""

from __future__ import annotations

import zlib

from backports import zstd

from nimbus.model.errors import Refused

ENCODINGS = "zstd, gzip"
MAX_BODY_BYTES = 4 * 2**20  # once unpacked
MAX_RATIO = 100  # plain bytes for each packed one: text seldom reaches 20, bombs 1000. Agents send plain above it
_WINDOW_LOG = 23  # 8 MiB: what a decoder must grant, and more than a body holds


def unpack(body: bytes, encoding: str) -> bytes | None:
    """The content of a body; None where that is larger than a body may be; Refused where it cannot be read.

    `encoding` is identity, gzip or zstd.
    """
    if encoding == "identity":
        return body
    limit = min(MAX_BODY_BYTES, len(body) * MAX_RATIO)
    plain, whole = (_read_gzip if encoding == "gzip" else _read_zstd)(body, limit + 1)
    if len(plain) > limit:
        return None
    if not whole:
        raise Refused(f"the {encoding} body is cut short or has something behind it")
    return plain


def _read_gzip(body: bytes, most: int) -> tuple[bytes, bool]:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = unpacker.decompress(body, most)
    except zlib.error as error:
        raise Refused("the body is no gzip") from error
    return plain, unpacker.eof and not unpacker.unused_data


def _read_zstd(body: bytes, most: int) -> tuple[bytes, bool]:
    unpacker = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        plain = unpacker.decompress(body, most)
    except zstd.ZstdError as error:
        raise Refused("the body is no zstd, or asks for a window above 8 MiB") from error
    return plain, unpacker.eof and not unpacker.unused_data
