"""Labels as workflows write them: sizes, aliases, architectures, what is not ours, and what else people may send."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Refused
from nimbus.model.labels import Alias, Arch, LabelRules, Refusal, Wanted, check_alias, judge_labels, may_own
from nimbus.model.vm import Shape

RULES = LabelRules(labels=("nimbus", "gpu"), max_cpus=32, max_memory_gb=128, max_disk_gb=100)
BIG = Alias("big", Shape(16, 32768, 40960), Arch.X64, "heavy")
PI = Alias("pi", Shape(2, 2048, 4096), Arch.ARM64)
ALIASES = {"big": BIG, "pi": PI}


def wanted(*labels: str, rules: LabelRules = RULES) -> Wanted:
    judged = judge_labels(labels, rules, ALIASES)
    assert isinstance(judged, Wanted), judged
    return judged


def refusal(*labels: str, rules: LabelRules = RULES) -> str:
    judged = judge_labels(labels, rules, ALIASES)
    assert isinstance(judged, Refusal), judged
    return judged.why


def test_our_label_alone_gets_the_default_machine() -> None:
    assert wanted("nimbus") == Wanted(Shape(), Arch.X64, "base", ("nimbus",))


@pytest.mark.parametrize(
    ("label", "shape", "arch"),
    [
        ("nimbus-4cpu-8gb", Shape(4, 8192, 2048), Arch.X64),
        ("nimbus-8cpu-32gb-arm64", Shape(8, 32768, 2048), Arch.ARM64),
        ("nimbus-2cpu-4gb-20gb-disk", Shape(2, 4096, 20480), Arch.X64),
        ("nimbus-2cpu-4gb-20gb-disk-x64", Shape(2, 4096, 20480), Arch.X64),
        ("NIMBUS-4CPU-8GB", Shape(4, 8192, 2048), Arch.X64),
        ("nimbus-32cpu-128gb-100gb-disk", Shape(32, 131072, 102400), Arch.X64),
    ],
)
def test_a_size_in_a_label_is_ours_without_any_other_label(label: str, shape: Shape, arch: Arch) -> None:
    assert wanted(label) == Wanted(shape, arch, "base", ("nimbus",))


def test_a_size_stands_beside_labels_that_a_host_must_offer_and_those_that_every_host_does() -> None:
    judged = wanted("self-hosted", "linux", "gpu-4cpu-8gb", "nimbus", "room-7")
    assert judged.host_labels == ("gpu", "nimbus", "room-7")


def test_an_architecture_may_stand_as_a_label_of_its_own() -> None:
    assert wanted("nimbus", "ARM64").arch is Arch.ARM64
    assert wanted("nimbus-1cpu-1gb", "arm64").arch is Arch.ARM64
    assert wanted("nimbus", "x64").host_labels == ("nimbus",)


def test_an_alias_gets_its_orgs_machine_on_hosts_of_our_first_label() -> None:
    assert wanted("Big") == Wanted(BIG.shape, Arch.X64, "heavy", ("nimbus",), "big")
    assert wanted("gpu", "pi") == Wanted(PI.shape, Arch.ARM64, "base", ("gpu",), "pi")


def test_a_word_of_ours_that_a_host_may_offer_is_left_to_the_hosts_beside_our_label() -> None:
    assert wanted("nimbus", "nimbus-ssd").host_labels == ("nimbus", "nimbus-ssd")


@pytest.mark.parametrize("labels", [(), ("ubuntu-latest",), ("self-hosted", "linux", "x64"), ("nimbusx",), ("-", "")])
def test_a_job_that_names_nothing_of_ours_is_not_ours(labels: tuple[str, ...]) -> None:
    assert judge_labels(labels, RULES, ALIASES) is None
    assert not may_own(labels, RULES)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("nimbus-4cpus",), "nimbus-4cpus is no size: write it like nimbus-4cpu-8gb"),
        (("nimbus", "nimbus-4cpu"), "nimbus-4cpu is no size"),
        (("nimbus-0cpu-8gb",), "is no size"),
        (("nimbus-04cpu-8gb",), "is no size"),
        (("nimbus-4cpu-8gb-sparc",), "is no size"),
        (("nimbus-4cpu-8gb", "nimbus-2cpu-4gb"), "nimbus-2cpu-4gb and nimbus-4cpu-8gb each ask for a machine"),
        (("nimbus-4cpu-8gb", "big"), "nimbus-4cpu-8gb and big each ask"),
        (("big", "pi"), "big and pi each ask"),
        (("nimbus-4cpu-8gb-arm64", "x64"), "arm64 and x64 at once"),
        (("pi", "x64"), "arm64 and x64 at once"),
        (("nimbus-33cpu-8gb",), "33 CPUs are more than the 32 that a job may ask for here (NIMBUS_LABEL_MAX_CPUS)"),
        (("nimbus-1cpu-129gb",), "NIMBUS_LABEL_MAX_MEMORY_GB"),
        (("nimbus-1cpu-1gb-101gb-disk",), "NIMBUS_LABEL_MAX_DISK_GB"),
        (("nimbus-999999999cpu-1gb",), "NIMBUS_LABEL_MAX_CPUS"),
        (("nimbus-huge",), "has no label nimbus-huge: its operator can add one"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words_for_the_author(labels: tuple[str, ...], told: str) -> None:
    assert told in refusal(*labels)


def test_an_alias_above_a_limit_that_was_lowered_since_is_refused() -> None:
    assert "the label big asks for too much: 16 CPUs" in refusal("big", rules=replace(RULES, max_cpus=8))


def test_the_longest_of_our_labels_reads_the_size() -> None:
    rules = replace(RULES, labels=("nimbus", "nimbus-gpu"))
    assert wanted("nimbus-gpu-4cpu-8gb", rules=rules).host_labels == ("nimbus-gpu",)


@pytest.mark.parametrize(
    "word", ["", "Big", "two words", "-x", "nimbus", "gpu", "self-hosted", "arm64", "nimbus-4cpu-8gb", "ubuntu-latest"]
)
def test_an_alias_that_means_something_else_already_is_refused(word: str) -> None:
    with pytest.raises(Refused):
        check_alias(replace(BIG, alias=word), RULES)


def test_an_alias_may_be_any_other_word_within_the_limits() -> None:
    check_alias(replace(BIG, alias="nimbus-large"), RULES)
    with pytest.raises(Refused, match="NIMBUS_LABEL_MAX_CPUS"):
        check_alias(replace(BIG, shape=Shape(33, 1024, 1024)), RULES)


WORDS = st.one_of(
    st.text(max_size=300),
    st.sampled_from(["nimbus", "gpu", "big", "pi", "x64", "arm64", "linux", "self-hosted", "nimbus-", "nimbus-x"]),
    st.from_regex(
        r"(nimbus|gpu)-[0-9]{1,4}(cpu|cpus)-[0-9]{1,40}gb(-[0-9]{1,3}gb-disk)?(-arm64|-x64)?", fullmatch=True
    ),
)


@given(st.lists(WORDS, max_size=8))
def test_whatever_the_labels_they_are_judged_and_a_machine_stays_within_the_limits(labels: list[str]) -> None:
    judged = judge_labels(labels, RULES, ALIASES)
    if isinstance(judged, Wanted):
        assert judged.shape.cpus <= RULES.max_cpus
        assert judged.shape.mem_mib <= RULES.max_memory_gb * 1024
        assert set(judged.host_labels).isdisjoint({"linux", "self-hosted", "x64", "arm64", "big", "pi"})
        assert set(judged.host_labels) & set(RULES.labels)
    elif isinstance(judged, Refusal):
        assert judged.why.isprintable()
        assert len(judged.why) < 300
    if may_own(labels, RULES):
        assert judged is not None


@given(st.lists(WORDS, max_size=6))
def test_labels_are_a_set_without_case_or_order(labels: list[str]) -> None:
    ascii_only = [label for label in labels if label.isascii()]
    other = [label.upper() for label in reversed(ascii_only)] + ascii_only[:2]
    assert judge_labels(other, RULES, ALIASES) == judge_labels(ascii_only, RULES, ALIASES)


@given(st.integers(1, 32), st.integers(1, 128), st.integers(1, 100), st.sampled_from(Arch))
def test_a_size_says_exactly_what_it_says(cpus: int, memory_gb: int, disk_gb: int, arch: Arch) -> None:
    judged = wanted(f"nimbus-{cpus}cpu-{memory_gb}gb-{disk_gb}gb-disk-{arch}")
    assert (judged.shape, judged.arch) == (Shape(cpus, memory_gb * 1024, disk_gb * 1024), arch)
