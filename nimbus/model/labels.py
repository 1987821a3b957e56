"""What a job's labels ask for: whether it is ours, and then a shape, an architecture, an image and a kind of host.

Pure and total: any set of labels is judged, and what cannot be served is refused in words for the workflow's author.
Labels compare as sets and without case, as GitHub compares them. Never looks at hosts or orgs: an org's aliases are
passed in. Called by the control plane's demand.py (jobs), submission.py (a size by itself) and orgs.py (an alias before
it is kept).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nimbus.model.errors import Refused
from nimbus.model.vm import MAX_CPUS, Shape

MIB_PER_GB = 1024
_SHOWN_CHARS = 64  # of a label in a sentence: GitHub allows 256, of any kind
MAX_SET_BYTES = 2000  # of a whole label set: PostgreSQL's indexes hold no more, and nobody means that many
_SIZE = re.compile(r"([1-9][0-9]{0,8})cpu-([1-9][0-9]{0,8})gb(?:-([1-9][0-9]{0,8})gb-disk)?(?:-(x64|arm64))?", re.ASCII)
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
# GitHub gives such jobs to runners of its own: a machine of ours would wait for them in vain.
_HOSTED = ("ubuntu-", "windows-", "macos-")


class Arch(enum.StrEnum):
    """A processor's architecture, as GitHub's labels call it."""

    X64 = "x64"
    ARM64 = "arm64"


IMPLICIT = frozenset({"self-hosted", "linux"})  # true of every host of ours
_ARCHES = {arch.value: arch for arch in Arch}
_EXAMPLES = "nimbus-4cpu-8gb, or nimbus-4cpu-8gb-20gb-disk-arm64"
_ASK_ALIAS = "its operator can add one (nimbus orgs label set)"


@dataclass(frozen=True)
class Alias:
    """An org's own word for a machine. `image` None: the default one."""

    alias: str
    shape: Shape
    arch: Arch = Arch.X64
    image: str | None = None
    priority: int = 0  # of its machines within the org


@dataclass(frozen=True)
class LabelRules:
    """Which labels are ours, what they get without a size, and how large a size may be."""

    labels: tuple[str, ...] = ("nimbus",)  # lower case; an alias stands for the first of them on the hosts' side
    shape: Shape = field(default_factory=Shape)
    image: str = "base"
    max_cpus: int = MAX_CPUS
    max_memory_gb: int = 256
    max_disk_gb: int = 1024


@dataclass(frozen=True)
class Wanted:
    """What to make for the job. `host_labels` is what a host must offer besides room and architecture."""

    shape: Shape
    arch: Arch
    image: str
    host_labels: tuple[str, ...]
    alias: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class Refusal:
    """The job is ours and gets no machine: why, for the author of its workflow."""

    why: str


@dataclass(frozen=True)
class _Size:
    """A size that stands in a label."""

    own: str
    cpus: int
    mem_mib: int
    disk_mib: int
    arch: Arch | None


@dataclass
class _Read:
    """A label set, sorted by what each label is."""

    own: set[str] = field(default_factory=set)
    sizes: dict[str, _Size] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    arches: set[Arch] = field(default_factory=set)
    misspelt: list[str] = field(default_factory=list)  # begins as a size of ours and is none
    free: set[str] = field(default_factory=set)  # a host may offer it


def may_own(labels: Iterable[str], rules: LabelRules) -> bool:
    """Whether such a job is ours by its labels alone, whatever aliases its org has."""
    return any(label in rules.labels or _prefix_of(label, rules) is not None for label in _plain(labels))


def is_too_long(labels: Iterable[str]) -> bool:
    """Whether the set is none that a job of ours could have: it could not even be stored."""
    return sum(len(label.encode()) + 8 for label in labels) > MAX_SET_BYTES  # 8: what an array adds to an element


def judge_labels(labels: Iterable[str], rules: LabelRules, aliases: Mapping[str, Alias]) -> Wanted | Refusal | None:
    """What the set asks for, why it cannot be served, or None where the job is not ours."""
    read = _read(_plain(labels), rules, aliases)
    if not (read.own or read.sizes or read.aliases or read.misspelt):
        unknown = next((label for label in sorted(read.free) if _prefix_of(label, rules) is not None), None)
        # nothing else makes the job ours: the word was meant for us, as an alias
        return None if unknown is None else Refusal(f"this organisation has no label {_show(unknown)}: {_ASK_ALIAS}")
    problem = _find_problem(read, aliases)
    return _choose(read, rules, aliases) if problem is None else Refusal(problem)


def parse_size(text: str, rules: LabelRules) -> tuple[Shape, Arch | None]:
    """The machine of a size by itself (`4cpu-8gb-20gb-disk-arm64`); Refused for what is none."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Refused(f"{_show(text)} is no size: write it like 4cpu-8gb, or 4cpu-8gb-20gb-disk-arm64")
    cpus, mem_mib, disk_mib, arch = _read_size(match, rules)
    check_size(cpus, mem_mib, disk_mib, rules)
    return Shape(cpus, mem_mib, disk_mib), arch


def check_size(cpus: int, mem_mib: int, disk_mib: int, rules: LabelRules) -> None:
    """Refused for a machine above the limits of sizes."""
    too_much = _find_excess(cpus, mem_mib, disk_mib, rules)
    if too_much is not None:
        raise Refused(too_much)


def check_alias(alias: Alias, rules: LabelRules) -> None:
    """Refused for a word that already means something, or for a machine above the limits of labels."""
    word = alias.alias
    if not _ALIAS.fullmatch(word):
        raise Refused("a label is 1 to 63 of a-z, 0-9, dot, hyphen and underscore, and begins with a letter or digit")
    if word in rules.labels or word in IMPLICIT or word in _ARCHES:
        raise Refused(f"the label {word} has a meaning already: choose another")
    if _looks_like_size(word, rules):
        raise Refused(f"the label {word} reads as a size: choose another")
    if word.startswith(_HOSTED):
        raise Refused(f"GitHub gives jobs with the label {word} to its own runners: choose another")
    check_size(alias.shape.cpus, alias.shape.mem_mib, alias.shape.disk_mib, rules)


# --- reading ------------------------------------------------------------------------------------------------------


def _plain(labels: Iterable[str]) -> list[str]:
    return sorted({label.strip().lower() for label in labels} - {""})


def _read(labels: list[str], rules: LabelRules, aliases: Mapping[str, Alias]) -> _Read:
    read = _Read()
    for label in labels:
        size = _parse_size(label, rules)
        if label in rules.labels:
            read.own.add(label)
        elif size is not None:
            read.sizes[label] = size
        elif label in aliases:
            read.aliases.append(label)
        elif label in _ARCHES:
            read.arches.add(_ARCHES[label])
        elif _looks_like_size(label, rules):
            read.misspelt.append(label)
        elif label not in IMPLICIT:
            read.free.add(label)
    return read


def _prefix_of(label: str, rules: LabelRules) -> str | None:
    """The longest label of ours that this one goes on from with a hyphen."""
    return max((own for own in rules.labels if label.startswith(f"{own}-")), key=len, default=None)


def _looks_like_size(label: str, rules: LabelRules) -> bool:
    own = _prefix_of(label, rules)
    return own is not None and label[len(own) + 1 :][:1].isdigit()


def _parse_size(label: str, rules: LabelRules) -> _Size | None:
    own = _prefix_of(label, rules)
    match = None if own is None else _SIZE.fullmatch(label[len(own) + 1 :])
    if own is None or match is None:
        return None
    return _Size(own, *_read_size(match, rules))


def _read_size(match: re.Match[str], rules: LabelRules) -> tuple[int, int, int, Arch | None]:
    cpus, memory_gb, disk_gb, arch = match.groups()
    disk_mib = rules.shape.disk_mib if disk_gb is None else int(disk_gb) * MIB_PER_GB
    return int(cpus), int(memory_gb) * MIB_PER_GB, disk_mib, None if arch is None else _ARCHES[arch]


# --- judging ------------------------------------------------------------------------------------------------------


def _find_problem(read: _Read, aliases: Mapping[str, Alias]) -> str | None:
    if read.misspelt:
        return f"{_show(read.misspelt[0])} is no size: write it like {_EXAMPLES}"
    machines = [*read.sizes, *read.aliases]
    if len(machines) > 1:
        return f"{_show(machines[0])} and {_show(machines[1])} each ask for a machine of their own: keep one of them"
    arches = set(read.arches)
    arches |= {size.arch for size in read.sizes.values() if size.arch is not None}
    arches |= {aliases[alias].arch for alias in read.aliases}
    if len(arches) > 1:
        return f"the labels ask for {' and '.join(sorted(arches))} at once: keep one of them"
    return None


def _choose(read: _Read, rules: LabelRules, aliases: Mapping[str, Alias]) -> Wanted | Refusal:
    """The machine of a set that names one size, one alias or neither."""
    arch = next(iter(read.arches), Arch.X64)
    for size in read.sizes.values():
        too_much = _find_excess(size.cpus, size.mem_mib, size.disk_mib, rules)
        if too_much is not None:
            return Refusal(too_much)
        shape = Shape(size.cpus, size.mem_mib, size.disk_mib)
        hosts = read.own | {size.own} | read.free
        return Wanted(shape, size.arch or arch, rules.image, tuple(sorted(hosts)))
    for alias in (aliases[word] for word in read.aliases):
        too_much = _find_excess(alias.shape.cpus, alias.shape.mem_mib, alias.shape.disk_mib, rules)
        if too_much is not None:
            return Refusal(f"the label {_show(alias.alias)} asks for too much: {too_much}")
        hosts = (read.own or set(rules.labels[:1])) | read.free
        image = alias.image or rules.image
        return Wanted(alias.shape, alias.arch, image, tuple(sorted(hosts)), alias.alias, alias.priority)
    return Wanted(rules.shape, arch, rules.image, tuple(sorted(read.own | read.free)))


def _find_excess(cpus: int, mem_mib: int, disk_mib: int, rules: LabelRules) -> str | None:
    """Why that is more than a job may ask for; None where it is not."""
    for asked, most, what, variable in (
        (cpus, rules.max_cpus, "CPUs", "NIMBUS_LABEL_MAX_CPUS"),
        (mem_mib, rules.max_memory_gb * MIB_PER_GB, "MiB of memory", "NIMBUS_LABEL_MAX_MEMORY_GB"),
        (disk_mib, rules.max_disk_gb * MIB_PER_GB, "MiB of disk", "NIMBUS_LABEL_MAX_DISK_GB"),
    ):
        if asked > most:
            return f"{asked} {what} are more than the {most} that a job may ask for here ({variable})"
    return None


def _show(label: str) -> str:
    """A label inside a sentence: short, and nothing in it that drives a terminal."""
    shown = "".join(each if each.isprintable() else "?" for each in label[:_SHOWN_CHARS])
    return shown if len(label) <= _SHOWN_CHARS else f"{shown}..."
