"""What the control plane tells of registered secrets is what the log pipeline takes: both for real, over HTTP."""

from __future__ import annotations

import pytest
import trio

from nimbus.logging_pipeline.plane import Plane
from nimbus.logging_pipeline.registered import MaskTerms, Registered
from nimbus.runtime.http import open_http
from tests.unit.control_plane.plane import open_plane

pytestmark = pytest.mark.services
VALUE = "correct-horse-battery-staple"


async def test_a_value_registered_by_an_admin_is_found_by_the_pipeline(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane, open_http() as client, trio.open_nursery() as nursery:
        put = await plane.http.put("/api/orgs/local/masks/key", json={"value": VALUE}, headers=plane.admin())
        assert put.status_code == 200, put.text
        [row] = await plane.sql("SELECT org_id FROM orgs WHERE login = 'local'")
        asked = Plane(client, plane.url, plane.services.access.admin_keys[0])
        registered = Registered(asked, MaskTerms(), lambda: None)
        nursery.start_soon(registered.run)
        await registered.ensure(row["org_id"])
        await registered.ensure(row["org_id"] + 1)  # an org without any
        needles = registered.find(row["org_id"])
        nursery.cancel_scope.cancel()

    assert needles is not None
    assert needles.find(f"x {VALUE} y".encode()).spans == [(2, 2 + len(VALUE))]
    assert registered.find(row["org_id"] + 1) is None
