"""`nimbus admin keys`: what an operator types, against a real control plane."""

from __future__ import annotations

import json

import pytest
import trio

from nimbus.cli.keys import render_moment, render_revocation, render_rotation
from tests.unit.cli.test_jobs import Said, nimbus_cli
from tests.unit.control_plane.plane import ADMIN_SECRET, Plane, open_plane


async def keys(plane: Plane, *words: str) -> Said:
    def run() -> Said:
        return nimbus_cli("admin", "keys", *words, NIMBUS_CONTROL_PLANE_URL=plane.url, NIMBUS_JWT_SECRET=ADMIN_SECRET)

    return await trio.to_thread.run_sync(run)


@pytest.mark.services
async def test_an_operator_lists_rotates_and_revokes_keys(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        listed = await keys(plane, "list")
        assert (listed.status, listed.err) == (0, "")
        lines = [line.split() for line in listed.out.splitlines()]
        assert lines[0][:2] == ["FAMILY", "ROLE"]
        assert sorted(line[:2] for line in lines[1:]) == [["agent", "current"], ["machine", "current"]]

        rotated = await keys(plane, "rotate", "--family", "agent")
        coming = plane.services.keys.current.find_next("agent")
        assert coming is not None
        assert rotated.out.startswith("agent: the next key is published; it signs from 20")
        assert coming.verify.kid in rotated.out
        assert "agent: a next key was published already" in (await keys(plane, "rotate")).out

        current = plane.services.keys.current.signing("agent").kid
        revoked = await keys(plane, "revoke", current)
        assert f"agent: {current} is revoked; {coming.verify.kid} signs." in revoked.out
        assert "Agents enrol again by themselves." in revoked.out
        again = await keys(plane, "revoke", current)
        assert (again.status, again.out) == (0, f"{current} was revoked already: nothing of it is accepted\n")

        as_json = json.loads((await keys(plane, "list", "--json")).out)
        assert {key["role"] for key in as_json["keys"]} == {"current", "next", "revoked"}
        unknown = await keys(plane, "revoke", "nobodys")
        assert (unknown.status, unknown.out) == (2, "")
        assert "there is no signing key nobodys" in unknown.err


def test_what_was_published_and_revoked_is_said_in_words() -> None:
    rotation = {"family": "machine", "kid": "k1", "signs_in_s": 600.0, "made": True}
    told = "machine: the next key is published; it signs from 2027-01-15 08:10:00Z (600 s)  k1"
    assert render_rotation(rotation, 1_800_000_000.0) == told
    revocation = {"family": "machine", "kid": "k1", "was": "current", "signs": "k2"}
    assert "Output of machines that run now is refused" in render_revocation(revocation)
    assert render_revocation(revocation | {"was": "next"}) == "machine: k1 is revoked; k2 signs."
    assert render_moment(None) == "-"
