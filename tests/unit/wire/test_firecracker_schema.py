"""Every call of wire/firecracker.py against Firecracker's own description of its API, where that is at hand.

It is found by NIMBUS_FC_API_YAML, or in the folder of shared data beside this checkout. The description allows unknown
fields and the VMM does not, so here they are refused too.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nimbus.wire import firecracker
from nimbus.wire.firecracker import (
    ApiCall,
    Drive,
    Nic,
    RateLimit,
    Restore,
    TokenBucket,
    ask_config,
    ask_version,
    create_snapshot,
    describe_instance,
    flush_metrics,
    limit_drive,
    limit_nic,
    load_snapshot,
    pause_vm,
    press_ctrl_alt_del,
    put_metadata,
    resume_vm,
    set_boot,
    set_drive,
    set_entropy,
    set_logger,
    set_machine,
    set_metadata_service,
    set_metrics,
    set_nic,
    set_serial,
    set_vsock,
    start_instance,
)

BESIDE = Path(__file__).parents[4] / "shared" / "data" / "firecracker-api.yaml"
BUCKET = TokenBucket(1000, 100, burst=5)
LIMIT = RateLimit(BUCKET, BUCKET)

CALLS = [
    describe_instance(),
    ask_version(),
    ask_config(),
    set_logger("/log"),
    set_logger("/log", "Info"),
    set_metrics("/metrics"),
    set_serial(None),
    set_serial("/serial", BUCKET),
    set_machine(1, 128),
    set_machine(32, 4096, smt=True, huge_pages="2M"),
    set_boot("/kernel", "quiet"),
    set_boot("/kernel", "", "/initramfs"),
    set_drive(Drive("root", "/rootfs", read_only=True, root=True)),
    set_drive(Drive("overlay", "/overlay.img", read_only=False, limit=LIMIT)),
    set_nic(Nic("net", "nimbus0", "02:00:00:00:00:01")),
    set_nic(Nic("net", "nimbus0", "02:00:00:00:00:01", mtu=1500, rx=LIMIT, tx=LIMIT)),
    set_vsock(3, "/run/v.sock"),
    set_entropy(),
    set_metadata_service(["net"]),
    put_metadata({"any": {"thing": [1, None]}}),
    start_instance(),
    press_ctrl_alt_del(),
    flush_metrics(),
    pause_vm(),
    resume_vm(),
    create_snapshot("/state", "/memory"),
    load_snapshot(Restore("/state", "/memory")),
    load_snapshot(Restore("/state", "/memory", {"net": "nimbus0"}, "/v.sock", clock_realtime=True)),
    limit_drive("overlay", LIMIT),
    limit_nic("net", LIMIT, LIMIT),
]


@cache
def read_description() -> Mapping[str, Any]:
    path = Path(os.environ.get("NIMBUS_FC_API_YAML", BESIDE))
    if not path.is_file():
        pytest.skip("Firecracker's description of its API is not here: name it by NIMBUS_FC_API_YAML")
    described: Mapping[str, Any] = yaml.safe_load(path.read_text())
    for definition in described["definitions"].values():
        if definition.get("type") == "object" and "properties" in definition:
            definition.setdefault("additionalProperties", False)
    return described


def find_operation(described: Mapping[str, Any], call: ApiCall) -> Mapping[str, Any]:
    for path, operations in described["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", r"\\w+", path), call.path) and call.method.lower() in operations:
            operation: Mapping[str, Any] = operations[call.method.lower()]
            return operation
    raise AssertionError(f"Firecracker has no {call}")


def body_schema(operation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    bodies = [parameter["schema"] for parameter in operation.get("parameters", []) if parameter["in"] == "body"]
    return bodies[0] if bodies else None


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_every_call_is_one_that_firecracker_describes(call: ApiCall) -> None:
    described = read_description()
    schema = body_schema(find_operation(described, call))
    assert (schema is None) == (call.body is None)
    if schema is not None:
        jsonschema.Draft4Validator({**schema, "definitions": described["definitions"]}).validate(call.body)


def test_a_field_that_firecracker_does_not_know_is_found_by_this_test() -> None:
    described = read_description()
    schema = body_schema(find_operation(described, pause_vm()))
    assert schema is not None
    validator = jsonschema.Draft4Validator({**schema, "definitions": described["definitions"]})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"state": "Paused", "mood": "calm"})


def test_no_call_that_can_be_made_is_missing_here() -> None:
    makers = {
        name
        for name, value in inspect.getmembers(firecracker, inspect.isfunction)
        if not name.startswith("_") and inspect.signature(value).return_annotation == "ApiCall"
    }
    assert makers - set(globals()) == set()  # the linter sees to it that what is imported is used
    assert len(makers) > 20
