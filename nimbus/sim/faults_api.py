"""`/sim/faults`: set GitHub's bad days and see what they did. The control API's blueprint carries the routes.

It decides nothing: `faults.py` reads the plan and refuses what is none, and keeps the counts.
"""

# Quart runs a handler that is not async in a thread, and the world belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

import json

from quart import Blueprint, Response

from nimbus.sim.callers import read_body
from nimbus.sim.faults import Faults, parse_plan


def add_fault_routes(blueprint: Blueprint, faults: Faults) -> None:
    """GET shows the plan and what struck; POST sets another plan, in which what is not named is off."""

    def show() -> Response:
        return Response(json.dumps(faults.report()), content_type="application/json")

    @blueprint.get("/faults")
    async def show_faults() -> Response:
        return show()

    @blueprint.post("/faults")
    async def set_faults() -> Response:
        faults.set_plan(parse_plan(await read_body()))
        return show()
