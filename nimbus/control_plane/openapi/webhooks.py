"""What the webhooks' route takes and answers. Called by webhooks.py of the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from nimbus.control_plane.openapi.fields import JsonObject, said
from nimbus.control_plane.openapi.operation import Access, Answer, Body, Operation


@dataclass(frozen=True)
class DeliveryHeaders:
    """What GitHub sends along. The signature is the operation's security scheme."""

    x_github_event: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    x_github_delivery: Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{8,64}$", description="the delivery's GUID")]
    x_hub_signature_timestamp: (
        Annotated[str, Field(pattern=r"^[0-9]{1,15}$", description="of a relay: Unix seconds")] | None
    ) = None


@dataclass(frozen=True)
class DeliveryTaken:
    """What became of a delivery: it is stored before it is answered."""

    delivery: str
    state: Literal["stored", "processed", "ignored", "pong"]
    duplicate: bool
    reason: Annotated[str, said("why it is ignored")] | None = None


_STORED: JsonObject = {"delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958", "state": "stored", "duplicate": False}
TAKE_DELIVERY = Operation(
    "takeDelivery",
    "Take a webhook of GitHub's",
    Access.SIGNATURE,
    {
        202: Answer("it is stored, or needs nothing", DeliveryTaken, _STORED),
        200: Answer("it was settled before", DeliveryTaken, {**_STORED, "state": "processed", "duplicate": True}),
    },
    body=Body(JsonObject, {"zen": "Keep it logically awesome."}),
    headers=DeliveryHeaders,
    details="GitHub's own documents describe the body. Both addresses do the same.",
)
