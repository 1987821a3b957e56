"""The guest's C parsers under sanitizers: the shared vectors, then a few seconds of libFuzzer."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUEST = ROOT / "native" / "guest"
PARSERS = [str(GUEST / name) for name in ("frame.c", "message.c", "job.c")]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]
VECTORS = json.loads((ROOT / "tests" / "unit" / "wire" / "guestlink_vectors.json").read_text())
FUZZ_S = 3


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C half of the vector test."""
    program = tmp_path_factory.mktemp("guest") / "vectors"
    source = str(GUEST / "test" / "vectors.c")
    subprocess.run(["cc", *FLAGS, "-fsanitize=address,undefined", source, *PARSERS, "-o", str(program)], check=True)
    return program


def answers(speaker: Path, questions: list[str]) -> list[str]:
    asked = "".join(f"{question}\n" for question in questions)
    done = subprocess.run([speaker], input=asked, capture_output=True, check=True, text=True)
    return done.stdout.splitlines()


def test_the_guest_understands_exactly_the_bytes_of_the_vectors(speaker: Path) -> None:
    vectors = VECTORS["to_guest"]

    told = answers(speaker, [f"parse {vector['hex']}" for vector in vectors])

    assert dict(zip((v["name"] for v in vectors), told, strict=True)) == {v["name"]: v["text"] for v in vectors}


def test_the_guest_says_exactly_the_bytes_of_the_vectors(speaker: Path) -> None:
    vectors = VECTORS["from_guest"]

    told = answers(speaker, [f"render {vector['text']}" for vector in vectors])

    assert dict(zip((v["name"] for v in vectors), told, strict=True)) == {v["name"]: v["hex"] for v in vectors}


def test_the_guest_skips_a_broken_frame_and_hears_the_one_behind_it(speaker: Path) -> None:
    frame = next(vector for vector in VECTORS["to_guest"] if vector["name"] == "stop")
    broken = frame["hex"][:-2] + "ff"
    noise = "4e424c314e424c4e42"  # magics, whole and cut

    told = answers(speaker, [f"parse {noise}{broken}{frame['hex']}"])

    assert told == [frame["text"]]


@pytest.mark.skipif(shutil.which("clang") is None, reason="libFuzzer comes with clang, which is not installed")
@pytest.mark.parametrize("target", ["fuzz_frame", "fuzz_sealed"])
def test_a_few_seconds_of_fuzzing_find_nothing_in_the_guests_parsers(target: str, tmp_path: Path) -> None:
    program = tmp_path / target
    source = str(GUEST / "fuzz" / f"{target}.c")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for vector in VECTORS["to_guest"]:
        data = bytes.fromhex(vector["hex"])
        (corpus / vector["name"].replace(" ", "-")).write_bytes(b"\x20" + data)
        (corpus / f"{vector['name'].replace(' ', '-')}.payload").write_bytes(data[16:])
    flags = [*FLAGS, "-fsanitize=fuzzer,address,undefined"]
    subprocess.run(["clang", *flags, source, *PARSERS, "-o", str(program)], check=True)

    limits = [f"-max_total_time={FUZZ_S}", "-max_len=8192", "-print_final_stats=1"]
    done = subprocess.run([program, *limits, corpus], cwd=tmp_path, capture_output=True, check=False, text=True)

    assert done.returncode == 0, done.stderr[-4000:]
    assert "number_of_executed_units" in done.stderr
