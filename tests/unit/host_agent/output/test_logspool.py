"""The spool as a guest's sink: whatever is cut, sent again or killed, the same rows come out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.host_agent.output.lines import LineSplitter, LogRow, parse_checkpoint
from nimbus.host_agent.output.logspool import open_spool
from nimbus.host_agent.output.masking import Masker, MaskSet
from nimbus.host_agent.output.spoolrecord import Kind, Position, Record, Stream

SECRETS = ("abba", "bab", "baba", "babab", "cddc", "cdcdcd")
out_texts = st.lists(st.sampled_from([b"a", b"b", b"ab", b"\n", b"\n::add-mask::aabb\n", b"::add-"]), max_size=25)
err_texts = st.lists(st.sampled_from([b"c", b"d", b"cd", b"dc", b"\n", b" "]), max_size=25)
acts = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["stdout", "stderr"]), st.integers(1, 12), st.integers(0, 5)),
        st.just(("kill", 0, 0)),
    ),
    max_size=15,
)


async def store(folder: Path, texts: dict[str, bytes], script: list[tuple[str, int, int]]) -> list[Record]:
    """Send the texts as the script says, some of it twice, each agent from what the one before had safe."""
    lives: list[list[tuple[str, int, int]]] = [[]]
    for act in script:
        if act[0] == "kill":
            lives.append([])
        else:
            lives[-1].append(act)
    records: list[Record] = []
    for number, life in enumerate(lives):
        async with open_spool(folder) as spool:
            await spool.mask(SECRETS)
            received = dict(zip(texts, spool.offsets, strict=True))
            for stream, length, again in life:
                begin = max(0, received[stream] - again)
                data = texts[stream][begin : received[stream] + length]
                safe = await spool.write(stream, begin, data)
                received[stream] = max(received[stream], begin + len(data))
                assert safe <= received[stream]
            if number == len(lives) - 1:
                for stream, text in texts.items():
                    await spool.write(stream, received[stream], text[received[stream] :])
                await spool.flush()
                assert spool.offsets == tuple(map(len, texts.values()))
                await spool.finish()
                position, more = Position(0, 0), True
                while more:
                    fresh, position = await spool.read(position)
                    records += fresh
                    more = bool(fresh)
    return records


def rows_of(records: list[Record], stream: str) -> list[str]:
    splitter = LineSplitter(parse_checkpoint(None))
    rows: list[LogRow] = [row for record in records for row in splitter.feed(record)]
    return [row.message for row in rows if row.stream == stream]


def mask_whole(text: bytes) -> bytes:
    masks = MaskSet()
    for secret in SECRETS:
        masks.add(secret.encode())
    return b"".join(part.text for part in Masker(masks).feed(text, final=True))


@settings(deadline=None, max_examples=60)
@given(out_texts, err_texts, acts)
def test_cuts_repetitions_and_kills_change_no_row(
    out: list[bytes], err: list[bytes], script: list[tuple[str, int, int]]
) -> None:
    texts = {"stdout": b"".join(out), "stderr": b"".join(err)}
    with tempfile.TemporaryDirectory() as folder:
        records = trio.run(store, Path(folder) / "spool", texts, script)
    end = Record(Kind.END, Stream.AGENT, 1, 0)
    for stream, text in texts.items():
        whole = [Record(Kind.DATA, Stream[stream.upper()], 1, 0, mask_whole(text)), end]
        assert rows_of(records, stream) == rows_of(whole, stream)
