"""The fixed part of the campaign that `make test` runs: faults of every kind, in every layer.

Names as the campaign prints them. Called by campaign.py (`--part`) and test_campaign.py.
"""

from __future__ import annotations

REPRESENTATIVE = (
    "host.disk._sync_folder error",
    "host_agent.ledger.Ledger.create kill-after",
    "host.link._set_families error",
    "host.link.ensure_veth partial",
    "host.native.open_tap error",
    "host.netns.ensure_netns kill-after",
    "host.disk._clone error",
    "host.slots._take_first kill-after",
    "host.cgroup.ensure_leaf error",
    "host_agent.keeper._start kill-after",
    "host_agent.keeper._open_outer error",
    "host_agent.keeper.Keeper._ask hang",
    "host_agent.guesttalk.Talk._hear_hello error",
    "host_agent.guesttalk.Talk._hear_output kill-before",
    "host_agent.guesttalk.Talk._hear_exit kill-after",
    "host_agent.spool.Spool.append error",
    "host.conntrack.flush_connections hang",
    "host.netns.remove_netns error",
    "host.slots.release_slot kill-before",
    "host_agent.ledger.Ledger.remove kill-before",
    "lease kill-after",
    "renew_booting garbage",
    "renew_running 401",
    "renew_running 429",
    "renew_running lost",
    "runner partial",
    "finish lost",
    "finish kill-after",
    "ingest error",
    "ingest hang",
)
