"""Both ends of the agent API read what the other writes; anything else is Refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.attestation import Attestation
from nimbus.model.errors import Refused
from nimbus.model.labels import Arch
from nimbus.model.lease import LeaseKey, MachineState
from nimbus.model.vm import Command, Ending, Shape, Usage
from nimbus.wire import leaseapi as api

KEY = LeaseKey(7, "6f1f64e4-3d29-4d5c-9a53-0f4a2d8f6c11", 3)
COMMAND = Command(("sh", "-c", "x y"), {"K": "ü"}, "/w", "runner", 1.5, 2.0)
GRANT = api.Grant(
    KEY,
    300.0,
    1,
    api.MachineKind.COMMAND,
    Shape(2, 512, 64),
    "base",
    ("nimbus",),
    COMMAND,
    "http://logs/ingest",
    "a.b.c",
    api.GrantTimes(None, 5, 6),
)
CACHE_TOKEN = api.CacheToken("v1.k.p.m", 3600.0)  # fmt: skip


def body(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("value", "render", "parse"),
    [
        (api.EnrolRequest("0.1", "b", 2, 512), api.render_enrol_request, api.parse_enrol_request),
        (api.EnrolRequest("0.1", "b", 2, 512, (KEY,)), api.render_enrol_request, api.parse_enrol_request),
        (api.EnrolRequest("0.1", "b", 2, 512, ()), api.render_enrol_request, api.parse_enrol_request),
        (api.EnrolReply("host-1", 3600.0, 300.0, "a.b.c"), api.render_enrol_reply, api.parse_enrol_reply),
        (api.LeaseRequest(30.0, 2, 512, 1, ("nimbus",)), api.render_lease_request, api.parse_lease_request),
        (api.LeaseRequest(30.0, 2, 512, 1, (), 9000), api.render_lease_request, api.parse_lease_request),
        (api.LeaseRequest(1.0, 2, 512, 1, arch=Arch.ARM64), api.render_lease_request, api.parse_lease_request),
        (GRANT, api.render_grant, api.parse_grant),
        (replace(GRANT, cache_token=CACHE_TOKEN), api.render_grant, api.parse_grant),
        (api.RenewReply(20.0, False, None, CACHE_TOKEN), api.render_renew_reply, api.parse_renew_reply),
        (api.RenewReply(20.0, True, api.JobLink(5, None)), api.render_renew_reply, api.parse_renew_reply),
        (api.RenewReply(20.0, False), api.render_renew_reply, api.parse_renew_reply),
        (api.RunnerReply("n", ("/r",), {"A": "b"}), api.render_runner_reply, api.parse_runner_reply),
        (api.FinishReply(MachineState.DONE), api.render_finish_reply, api.parse_finish_reply),
    ],
)
def test_what_one_end_renders_the_other_parses(
    value: object, render: Callable[[Any], object], parse: Callable[[bytes], object]
) -> None:
    assert parse(body(render(value))) == value


def test_an_end_of_before_there_were_cache_tokens_is_understood() -> None:
    older = api.render_grant(GRANT)
    del older["cache_token"]
    assert api.parse_grant(body(older)).cache_token is None
    assert api.parse_renew_reply(b'{"ttl_s": 1, "cancel": false}').cache_token is None
    asked = api.render_renew_request(api.RenewRequest(KEY, api.HeldState.BOOTING))
    assert api.parse_renew_request(body(asked), 7).wants_cache_token is False


def test_a_token_does_not_show_itself_when_printed() -> None:
    granted = replace(GRANT, cache_token=CACHE_TOKEN)
    assert CACHE_TOKEN.text not in repr((CACHE_TOKEN, granted, api.RenewReply(1, False, None, CACHE_TOKEN)))


def test_a_renewal_asks_for_a_cache_token_where_the_holder_needs_one() -> None:
    asked = api.RenewRequest(KEY, api.HeldState.RUNNING, wants_cache_token=True)
    assert api.parse_renew_request(body(api.render_renew_request(asked)), 7) == asked


def test_an_agent_that_does_not_tell_its_architecture_is_an_x64_host() -> None:
    asked = api.parse_lease_request(b'{"wait_s": 1, "free": {"cpus": 1, "mem_mib": 1, "slots": 1}}')
    assert asked.arch is Arch.X64


def test_writes_of_a_holder_carry_machine_lease_and_fence() -> None:
    renew = api.RenewRequest(KEY, api.HeldState.BOOTING)
    finish = api.FinishRequest(KEY, Ending.FAILED, 3, None, "why", {"boot": 1.5})
    assert api.parse_renew_request(body(api.render_renew_request(renew)), 7) == renew
    assert api.parse_finish_request(body(api.render_finish_request(finish)), 7) == finish
    assert api.parse_runner_request(body(api.render_runner_request(KEY)), 7) == KEY


ATTESTED = Attestation("base", "a" * 64, "b" * 64, "c" * 64, "d" * 64, 1.8e9)


@pytest.mark.parametrize("attested", [ATTESTED, replace(ATTESTED, overridden=("kernel", "rootfs"), template="e" * 64)])
def test_a_finish_tells_what_was_booted(attested: Attestation) -> None:
    finish = api.FinishRequest(KEY, Ending.DONE, 0, attestation=attested)
    assert api.parse_finish_request(body(api.render_finish_request(finish)), 7) == finish


def test_a_finish_of_an_older_agent_tells_nothing_of_what_was_booted() -> None:
    older = api.render_finish_request(api.FinishRequest(KEY, Ending.DONE, 0))
    del older["attestation"]
    assert api.parse_finish_request(body(older), 7).attestation is None


@pytest.mark.parametrize(
    "wrong", [{"kernel": "x" * 64}, {"rootfs": "A" * 64}, {"manifest": None}, {"template": 7}, {"verified_at": -1}]
)
def test_a_finish_with_an_impossible_attestation_is_refused(wrong: dict[str, object]) -> None:
    good = api.render_finish_request(api.FinishRequest(KEY, Ending.DONE, 0))
    attested = api.render_finish_request(api.FinishRequest(KEY, Ending.DONE, 0, attestation=ATTESTED))["attestation"]
    assert isinstance(attested, dict)
    with pytest.raises(Refused):
        api.parse_finish_request(body(good | {"attestation": attested | wrong}), 7)


@pytest.mark.parametrize("usage", [None, Usage(), Usage(cpu_ms=5, sent_bytes=2**40), Usage(1, 2, 3, 4, 5)])
def test_a_renewal_tells_what_its_vm_used_as_far_as_its_host_can_count(usage: Usage | None) -> None:
    renew = api.RenewRequest(KEY, api.HeldState.RUNNING, usage)
    assert api.parse_renew_request(body(api.render_renew_request(renew)), 7) == renew


@pytest.mark.parametrize("usage", [7, [], {"cpu_ms": -1}, {"disk_bytes": "1"}, {"memory_bytes": 2**63}])
def test_a_renewal_with_an_impossible_use_is_refused(usage: object) -> None:
    good = api.render_renew_request(api.RenewRequest(KEY, api.HeldState.RUNNING))
    with pytest.raises(Refused):
        api.parse_renew_request(body(good | {"usage": usage}), 7)


def test_what_a_newer_agent_adds_is_ignored_and_what_an_older_one_leaves_out_has_its_default() -> None:
    newer = api.render_renew_request(api.RenewRequest(KEY, api.HeldState.RUNNING)) | {"usage": {"gpu_ms": 1}}
    older = {"wait_s": 0, "free": {"cpus": 1, "mem_mib": 1, "slots": 1}}
    assert api.parse_renew_request(body(newer), 7).usage == Usage()
    assert api.parse_lease_request(body(older)).free_disk_mib is None


def test_a_long_cause_is_cut_and_not_refused() -> None:
    finish = api.FinishRequest(KEY, Ending.FAILED, cause="x" * 99999)
    assert len(api.parse_finish_request(body(api.render_finish_request(finish)), 7).cause) == api.MAX_CAUSE_CHARS


def test_secrets_are_not_shown_by_a_grant() -> None:
    assert "ü" not in repr(GRANT)
    assert "a.b.c" not in repr(GRANT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fence": "3"}, {"fence": 0}, {"fence": -1}, {"fence": 2**63}, {"fence": True}, {"fence": 1.0},
        {"lease_id": "x"}, {"lease_id": None}, {"lease_id": 7}, {"ending": "won"}, {"ending": None},
        {"exit_code": 256}, {"exit_code": -1}, {"signal": 0}, {"cause": "a\0b"}, {"cause": 7},
        {"phases_ms": {"boot": "1"}}, {"phases_ms": [1]}, {"phases_ms": {"boot": 1e300}},
        {"phases_ms": {str(number): 1 for number in range(65)}},
    ],
)  # fmt: skip
def test_a_finish_with_a_wrong_field_is_refused(wrong: dict[str, object]) -> None:
    good = api.render_finish_request(api.FinishRequest(KEY, Ending.DONE, 0))
    with pytest.raises(Refused):
        api.parse_finish_request(body(good | wrong), 7)


@pytest.mark.parametrize("wait_s", [-1, 30.1, "1", None, True, 1e400, [1]])
def test_a_wait_out_of_range_is_refused(wait_s: object) -> None:
    asked = {"wait_s": wait_s, "free": {"cpus": 1, "mem_mib": 1, "slots": 1}, "labels": []}
    with pytest.raises(Refused):
        api.parse_lease_request(body(asked))


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"[" * 100000, b'{"a":' * 50000, b'{"wait_s": NaN}']
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        api.parse_lease_request(raw)


@given(st.dictionaries(st.text(max_size=10), st.none() | st.integers() | st.floats() | st.text(max_size=5)))
def test_any_object_is_parsed_or_refused_and_nothing_else_is_raised(value: dict[str, object]) -> None:
    for parse in (api.parse_enrol_request, api.parse_lease_request, api.parse_grant, api.parse_renew_reply):
        with pytest.raises(Refused):
            parse(body(value))


@given(st.text(st.characters(), max_size=3000))
def test_a_machines_end_is_taken_whatever_its_guest_said_last(cause: str) -> None:
    request = api.FinishRequest(KEY, Ending.GUEST_CRASHED, cause=f"panic\0{cause}")
    told = api.parse_finish_request(body(api.render_finish_request(request)), KEY.machine_id)
    assert told.cause.startswith("panic")
