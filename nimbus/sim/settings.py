"""The sim's settings, `NIMBUS_SIM_*`. Read once, by `main.py`."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Field, SecretStr

from nimbus.model.errors import Refused
from nimbus.runtime.settings import RoomSettings
from nimbus.sim.deliveries import WINDOW_S as DELIVERY_WINDOW_S
from nimbus.sim.deliveries import WebhookTarget
from nimbus.sim.faults import FaultPlan, parse_plan
from nimbus.sim.forge import ForgePolicy
from nimbus.sim.world import WorldPlan

_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})")  # as GitHub's accounts are named


def check_public_key(pem: str) -> str:
    """The key itself; Refused where it is no RSA public key."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, RSAPublicKey):
        raise Refused("NIMBUS_SIM_APP_PUBLIC_KEY: a PEM of the App's RSA public key is needed")
    return pem


class SimSettings(RoomSettings):
    """Where the fake GitHub listens, which App it knows and whom it tells."""

    sim_bind: str = "127.0.0.1:8080"
    sim_public_url: str = "http://172.16.0.1:8080"  # as a guest reaches us: the gateway's address
    sim_webhook_url: str | None = None  # without one, deliveries are recorded and not sent
    sim_webhook_secret: SecretStr | None = None
    sim_app_id: str = "1"
    sim_app_public_key: str  # PEM
    sim_installation_id: int = 1
    sim_owner: str = "nimbus-demo"
    sim_owners: str = Field(
        default="",
        description="further organisations, comma separated; each has the App, under the next installation id",
    )
    sim_repo: str = "hello"
    sim_control_token: SecretStr | None = None  # without one, /sim answers to loopback only
    sim_rate_limit: int = 5000
    sim_accept_within_s: float = 60.0
    sim_runner_lost_after_s: float = 600.0
    sim_runner_return_within_s: float = 60.0
    sim_runner_idle_s: float = Field(
        default=0.0,
        ge=0,
        description="seconds; a runner online for so long without a job is dropped by the server; 0: never",
    )
    sim_state_dir: Path | None = None  # without one the world ends with the process
    sim_faults: str | None = None  # JSON; what POST /sim/faults takes
    sim_delivery_window_s: float = Field(default=DELIVERY_WINDOW_S, gt=0)

    def world_plan(self) -> WorldPlan:
        """The values that the rest of the room is given."""
        webhook = None
        if self.sim_webhook_url is not None:
            if self.sim_webhook_secret is None:
                raise Refused("NIMBUS_SIM_WEBHOOK_SECRET: is needed beside NIMBUS_SIM_WEBHOOK_URL")
            webhook = WebhookTarget(self.sim_webhook_url, self.sim_webhook_secret.get_secret_value())
        token = self.sim_control_token
        return WorldPlan(
            owner=self.sim_owner,
            repo=self.sim_repo,
            app_id=self.sim_app_id,
            app_public_key_pem=check_public_key(self.sim_app_public_key.replace("\\n", "\n")),
            installation_id=self.sim_installation_id,
            public_url=self.sim_public_url,
            webhook=webhook,
            control_token=token.get_secret_value() if token is not None else None,
            rate_limit=self.sim_rate_limit,
            policy=ForgePolicy(
                accept_within_s=self.sim_accept_within_s,
                lost_after_s=self.sim_runner_lost_after_s,
                return_within_s=self.sim_runner_return_within_s,
                idle_at_most_s=self.sim_runner_idle_s,
            ),
            more_owners=self._more_owners(),
            state_dir=self.sim_state_dir,
            faults=self._faults(),
            delivery_window_s=self.sim_delivery_window_s,
        )

    def _faults(self) -> FaultPlan:
        try:
            return parse_plan(self.sim_faults or "{}")
        except Refused as error:
            raise Refused(f"NIMBUS_SIM_FAULTS: {error}") from None

    def _more_owners(self) -> tuple[str, ...]:
        """Those of NIMBUS_SIM_OWNERS that are not the first one, each once."""
        named = [name.strip() for name in self.sim_owners.split(",") if name.strip()]
        for name in (self.sim_owner, *named):
            if not _OWNER.fullmatch(name):
                raise Refused("NIMBUS_SIM_OWNERS: names of organisations, separated by commas, are needed")
        by_name: dict[str, str] = {}
        for name in (self.sim_owner, *named):
            by_name.setdefault(name.lower(), name)
        return tuple(by_name.values())[1:]
