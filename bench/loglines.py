"""Job output that looks like CI's: checkouts, image pulls, package installs, compilers, tests, coverage. From a seed.

What varies in real output (hashes, times, sizes, paths, counters) varies here, and what repeats (words, the messages of
a program, colours) repeats, because compression and search are measured on it; hardly a line is the copy of another.
The same seed and job give the same lines. Imports nothing of nimbus. Called by logs.py's parts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

SENTENCES = 200  # messages that the programs of one job have
_CHOICES = {
    "verb": "parse render open close read write merge split build check load store fetch send retry watch sign hash",
    "noun": "config token lease machine index cursor stream buffer schema route cache digest worker queue policy blob",
    "part": "core api db auth http cli web proxy sched agent store logs jobs ui model wire sync audit",
    "word": "the of to and in is not a for with on value expected received timeout connection argument file missing "
    "required deprecated unused variable import type return function module option failed retry closed invalid while",
    "package": "react lodash webpack eslint babel-core jest vite rollup chalk semver glob postcss acorn ajv ws undici",
    "crate": "serde tokio hyper rustls regex syn quote proc-macro2 libc bytes tracing clap rand anyhow futures axum",
    "flag": "-Wall -Wextra -Werror=format -fPIC -fno-strict-aliasing -pipe -g -O2 -DNDEBUG -pthread -fno-plt",
    "level": "INFO INFO INFO INFO DEBUG WARN",
    "said": "warning warning warning note error",
    "cached": "hit hit miss revalidated",
    "method": "GET GET GET POST PUT DELETE",
    "status": "200 200 200 200 201 204 304 404 500",
    "passed": "ok ok ok ok ok ok ok ok ok ok ok ok ok ok ok ok ok ok ok ignored FAILED",
}
_COLOURS = {"red": "\x1b[31m", "green": "\x1b[32m", "dim": "\x1b[2m", "bold": "\x1b[1m", "off": "\x1b[0m"}
# {hex:12} is drawn anew, twelve digits of it; {n:900} a number below 900; {time} goes on; the others are choices
_PHASES: dict[str, tuple[str, ...]] = {
    "Run actions/checkout": (
        "[command]/usr/bin/git -c protocol.version=2 fetch --no-tags --depth=1 origin +{hex:40}:refs/{noun}-{n:900}",
        "remote: Counting objects: {n:100}% ({n:90000}/{n:90000})",
        "Receiving objects: {n:100}% ({n:90000}/{n:90000}), {n:90}.{n:100} MiB | {n:60}.{n:100} MiB/s",
        "HEAD is now at {hex:7} {sentence} (#{n:9999})",
    ),
    "Pull the build image": (
        "{hex:12}: Pulling fs layer",
        "{hex:12}: Verifying Checksum",
        "{hex:12}: Pull complete",
        "#{n:40} {n:90}.{n:999} Get:{n:300} http://deb.example/debian bookworm/main amd64 lib{package}{n:9} amd64 "
        "{n:9}.{n:40}-{n:9} [{n:9000} kB]",
        "#{n:40} sha256:{hex:64} {n:90}.{n:99}MB / {n:900}.{n:99}MB {n:60}.{n:9}s",
    ),
    "npm ci": (
        "npm http fetch GET 200 https://registry.example/{package}/-/{package}-{n:20}.{n:30}.{n:20}.tgz {n:900}ms "
        "(cache {cached})",
        "npm http fetch GET 200 https://registry.example/@{part}%2f{package} {n:900}ms (cache {cached})",
        "npm {bold}warn{off} deprecated {package}@{n:20}.{n:30}.{n:20}: {sentence}",
    ),
    "cmake --build build": (
        "[{n:900}/900] {green}Building CXX object{off} src/CMakeFiles/{repo}.dir/{file}.cc.o",
        "[{n:900}/900] {green}Building CXX object{off} src/CMakeFiles/{repo}.dir/{file}.cc.o",
        "/usr/bin/c++ {flag} {flag} {flag} {flag} -Isrc/{part} -MD -MF {file}.cc.o.d -o {file}.cc.o -c src/{file}.cc",
        "{bold}src/{file}.cc:{n:2400}:{n:90}:{off} {said}: {sentence} '{name}' [-W{noun}-{verb}]",
        " {n:2400} |     auto {noun} = {name}({noun}, {n:4096});",
        "      |            ^~~~~~~~~~~~~~~~~~{n:9}",
    ),
    "cargo test": (
        "   {bold}{green}Compiling{off} {crate} v{n:3}.{n:40}.{n:90}",
        "test {part}::tests::{name}_{word} ... {passed}",
        "test {part}::{noun}::tests::{name} ... {passed}",
        "test result: ok. {n:900} passed; 0 failed; {n:9} ignored; finished in {n:90}.{n:99}s",
    ),
    "pytest": (
        "tests/{file}.py::test_{name}_{word}[{noun}-{n:400}] {green}PASSED{off} [{n:100}%]",
        "tests/{file}.py::test_{name} {green}PASSED{off} [{n:100}%]",
        "tests/{file}.py::test_{name}[{noun}] {green}PASSED{off} [{n:100}%]",
        '  File "/home/runner/work/{repo}/src/{file}.py", line {n:900}, in {name}',
        "    return self._{name}({noun}, {noun}_id={n:99999})",
        "{red}E   AssertionError: assert {n:999} == {n:999}{off}",
        "::error file=src/{file}.py,line={n:900},title=assertion::{sentence}",
    ),
    "Run the service's own tests": (
        "2026-11-22T{time}Z {level} {part}.{noun}: {method} /v1/{noun}s/{hex:8}-{hex:4} {status} {n:90}.{n:9}ms "
        "trace={hex:16}",
        "2026-11-22T{time}Z {level} {part}.{noun}: {sentence} id={n:999999} attempt={n:5}",
        "2026-11-22T{time}Z {level} {part}.{noun}: {sentence} {noun}={name}",
    ),
    "Coverage": (
        "{dim}src/{off}{file}.py {n:900} {n:300} {n:100}%   {n:300}-{n:900}",
        "{dim}src/{off}{file}.py {n:900} 0 100%",
    ),
}


class JobOutput:
    """What one job prints: endless, phase after phase, each begun as a group."""

    def __init__(self, seed: int, job: int) -> None:
        self._draw = random.Random(seed * 1_000_003 + job)  # noqa: S311 - output to be had again, no secret
        self._field = _Field(self._draw, job)
        self._lines = self._print()

    def take(self, count: int) -> list[str]:
        """The next lines."""
        return list(islice(self._lines, count))

    def _print(self) -> Iterator[str]:
        draw, field = self._draw, self._field
        names = list(_PHASES)
        while True:
            name = draw.choice(names)
            yield f"::group::{name}"
            templates = _PHASES[name]
            for _ in range(draw.randrange(30, 400)):
                yield draw.choice(templates).format_map(field)
            yield "::endgroup::"


class _Field(dict[str, object]):
    """What a template's field becomes. Numbers and hashes take their size from what follows the colon."""

    def __init__(self, draw: random.Random, job: int) -> None:
        choices = {name: words.split() for name, words in _CHOICES.items()}
        super().__init__({name: _Choice(draw, words) for name, words in choices.items()})
        self.update(_COLOURS)
        pick = {name: self[name] for name in choices}
        names = ["{verb}_{noun}_{noun}".format_map(pick) for _ in range(300)]
        files = ["{part}/{part}/".format_map(pick) + name for name in names]
        lengths = [draw.randrange(4, 12) for _ in range(SENTENCES)]
        sentences = [" ".join(draw.choices(choices["word"], k=length)) for length in lengths]
        self["name"], self["file"] = _Choice(draw, names), _Choice(draw, files)
        self["sentence"] = _Choice(draw, sentences)
        self["repo"] = f"service-{job}"
        self["n"], self["hex"], self["time"] = _Number(draw), _Hex(draw), _Clock(draw)


class _Choice:
    def __init__(self, draw: random.Random, words: list[str]) -> None:
        self._random, self._words, self._count = draw.random, words, len(words)

    def __format__(self, _: str) -> str:
        return self._words[int(self._random() * self._count)]


class _Number:
    def __init__(self, draw: random.Random) -> None:
        self._random = draw.random

    def __format__(self, below: str) -> str:
        return str(int(self._random() * int(below)))


class _Hex:
    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    def __format__(self, digits: str) -> str:
        return f"{self._draw.getrandbits(int(digits) * 4):0{digits}x}"


class _Clock:
    """The time of day, which goes on from line to line."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._now_s = draw.random() * 80_000

    def __format__(self, _: str) -> str:
        self._now_s += self._draw.expovariate(20)
        whole, fraction = divmod(self._now_s, 1)
        second = int(whole)
        return f"{second // 3600 % 24:02d}:{second // 60 % 60:02d}:{second % 60:02d}.{int(fraction * 1000):03d}"
