"""Downloads: the whole output as one file, in parts that fit together, byte for byte."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import httpx2
import pytest
import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.reading.byterange import ByteRange, Unsatisfiable, parse_range
from tests.unit.logging_pipeline.rig import Rig, bearer, open_rig, row

LINES = [f"line {n} \u00e4\u20ac\U0001f680" for n in range(700)]
WHOLE = "".join(f"{line}\n" for line in LINES).encode()


async def fetch(
    rig: Rig, path: str = "/logs/jobs/100/download", headers: dict[str, str] | None = None, **params: str
) -> httpx2.Response:
    every = {"Accept-Encoding": "identity"} | bearer(rig.read_token()) | (headers or {})
    return await rig.client.get(f"{rig.url}{path}", params=params, headers=every)


async def prepare(rig: Rig) -> None:
    rig.control.add_job(100, 1, "completed", [(7, 1), (9, 1)])
    await rig.ingest([row(n, line) for n, line in enumerate(LINES[:600])])
    await rig.ingest([row(n, line) for n, line in enumerate(LINES[600:])] + [row(100, "", "end")], machine=9)


async def test_the_whole_output_is_one_text(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            reply = await fetch(rig)
            assert reply.content == WHOLE
            assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert reply.headers["Content-Disposition"] == 'attachment; filename="job-100.log"'
            assert reply.headers["Content-Length"] == str(len(WHOLE))
            assert reply.headers["Accept-Ranges"] == "bytes"
            head = await rig.client.head(
                f"{rig.url}/logs/jobs/100/download", headers=bearer(rig.read_token()) | {"Accept-Encoding": "identity"}
            )
            assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(WHOLE)))
            machine = await fetch(rig, "/logs/machines/9/download")
            assert machine.content == "".join(f"{line}\n" for line in LINES[600:]).encode()


async def test_any_range_is_that_part_of_the_text(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            size = len(WHOLE)
            for first, last in (
                (0, 0),
                (0, 99),
                (5, 6),
                (9000, 9500),
                (size - 1, size - 1),
                (1, size + 50),
                (size // 2, size),
            ):
                part = await fetch(rig, headers={"Range": f"bytes={first}-{last}"})
                assert part.status_code == 206
                assert part.content == WHOLE[first : last + 1]
                assert part.headers["Content-Range"] == f"bytes {first}-{min(last, size - 1)}/{size}"
            assert (await fetch(rig, headers={"Range": "bytes=-10"})).content == WHOLE[-10:]
            assert (await fetch(rig, headers={"Range": "bytes=20000-"})).content == WHOLE[20000:]
            beyond = await fetch(rig, headers={"Range": f"bytes={size}-"})
            assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
            for whole in ("bytes=5-2", "lines=1-2", "bytes=0-1,5-6", "bytes=x"):
                assert (await fetch(rig, headers={"Range": whole})).status_code == 200


async def test_a_tag_tells_whether_the_output_grew(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            tag = (await fetch(rig)).headers["ETag"]
            assert (await fetch(rig, headers={"If-None-Match": tag})).status_code == 304
            resumed = {"Range": "bytes=10-", "If-Range": tag}
            assert (await fetch(rig, headers=resumed)).status_code == 206
            await rig.ingest([row(600, "one more")])
            grown = await fetch(rig, headers=resumed)
            assert (grown.status_code, len(grown.content)) == (200, len(WHOLE) + len("one more\n"))
            assert grown.headers["ETag"] != tag
            assert (await fetch(rig, headers={"If-None-Match": tag})).status_code == 200


async def test_a_line_that_is_stored_twice_is_downloaded_once(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            table = rig.services.table
            await table.command(f"INSERT INTO {table.name} SELECT * FROM {table.name}")  # noqa: S608 - our name
            assert (await fetch(rig)).content == WHOLE
            assert (await fetch(rig, headers={"Range": "bytes=100-20000"})).content == WHOLE[100:20001]


async def test_gzip_is_the_same_text_as_a_file_or_as_an_encoding(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            packed = await fetch(rig, format="gz")
            assert gzip.decompress(packed.content) == WHOLE
            assert "Content-Encoding" not in packed.headers
            assert packed.headers["Content-Disposition"] == 'attachment; filename="job-100.log.gz"'
            encoded = await fetch(rig, headers={"Accept-Encoding": "gzip"})
            assert encoded.headers["Content-Encoding"] == "gzip"
            assert encoded.content == WHOLE
            ranged = await fetch(rig, headers={"Accept-Encoding": "gzip", "Range": "bytes=0-9"})
            assert (ranged.status_code, ranged.content) == (206, WHOLE[:10])
            assert len({reply.headers["ETag"] for reply in (packed, ranged)}) == 2
            refused = await fetch(rig, headers={"Accept-Encoding": "gzip;q=0"})
            assert "Content-Encoding" not in refused.headers


async def test_times_plain_text_and_json_lines_are_to_be_had(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            await rig.ingest(
                [row(0, "\x1b[31mred\x1b[0m 10%\r 99%"), row(1, "boot", "console"), row(2, "2 lines dropped", "agent")]
            )
            kept = await fetch(rig)
            assert kept.text == "\x1b[31mred\x1b[0m 10%\r 99%\n[console] boot\n2 lines dropped\n"
            dated = await fetch(rig, timestamps="1")
            assert dated.headers["Content-Length"] == str(len(dated.content))
            assert [line[24:] for line in dated.text.split("\n")[1:]] == [" [console] boot", " 2 lines dropped", ""]
            assert dated.text[4] + dated.text[10] + dated.text[23] == "-TZ"
            plain = await fetch(rig, plain="1")
            assert plain.text.split("\n")[0] == " 99%10%"
            assert plain.headers["Accept-Ranges"] == "none"
            told = [json.loads(line) for line in (await fetch(rig, format="jsonl")).text.splitlines()]
            assert [(each["seq"], each["stream"]) for each in told] == [(0, "stdout"), (1, "console"), (2, "agent")]


async def test_an_empty_output_is_an_empty_file(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "queued", [])
            for params in ({}, {"format": "gz"}, {"format": "jsonl"}, {"plain": "1"}):
                reply = await fetch(rig, "/logs/jobs/100/download", None, **params)
                assert reply.status_code == 200
                assert (gzip.decompress(reply.content) if params.get("format") == "gz" else reply.content) == b""
            assert (await fetch(rig, headers={"Range": "bytes=0-"})).status_code == 416


@pytest.mark.parametrize("asked", [{"format": "zip"}, {"timestamps": "yes"}, {"plain": "2"}, {"format": "JSON;DROP"}])
async def test_a_form_that_is_none_is_refused(tmp_path: Path, engine: Endpoint, asked: dict[str, str]) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            assert (await fetch(rig, "/logs/jobs/100/download", None, **asked)).status_code == 400


@pytest.mark.parametrize(
    ("header", "size", "told"),
    [
        (None, 10, None), ("", 10, None), ("bytes=0-4", 10, ByteRange(0, 5)), ("bytes=4-", 10, ByteRange(4, 10)),
        ("bytes=-4", 10, ByteRange(6, 10)), ("bytes=-40", 10, ByteRange(0, 10)), ("bytes=0-99", 10, ByteRange(0, 10)),
        ("bytes=-", 10, None), ("bytes=4-3", 10, None), ("bytes=0-1, 3-4", 10, None), ("bytes 0-1", 10, None),
    ],
)  # fmt: skip
def test_a_range_is_read_as_http_says(header: str | None, size: int, told: ByteRange | None) -> None:
    assert parse_range(header, size) == told


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)]
)
def test_a_range_without_a_byte_cannot_be_satisfied(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(header, size)
