"""The fixed part of the campaign that `make test` runs: faults of every kind, in every layer.

Names as the campaign prints them; one that no clean run's trace holds is no harm. Called by campaign.py and
test_campaign.py.
"""

from __future__ import annotations

# Pairs that found a bug once: every campaign runs them, beside the part below.
FOUND = (
    "host.netns.list_netns hang (agent starts)",
    "host.link.list_links hang (agent starts)",
    "host.nft.list_tables hang (agent starts)",
    "host.cgroup.list_cgroups hang (agent starts)",
    "host_agent.ledger.Ledger.vms kill-before (agent starts)",
    "host_agent.ledger.Ledger.vms hang (agent starts)",
    "host_agent.ledger.Ledger.read hang (agent starts)",
    "host_agent.ledger.Ledger.take hang (agent starts)",
    "host_agent.ledger.Ledger.holds hang (agent starts)",
    "host_agent.ledger.Ledger.create hang",
    "host_agent.ledger.Ledger.write hang",
    "host_agent.ledger.Ledger.remove hang",
    "host_agent.ledger.OpenRecord.change hang",
    "host_agent.ledger.OpenRecord.forget_report hang",
    "host_agent.output.spool.Spool.load hang",
    "host_agent.output.spool.Spool.append hang",
    "host_agent.output.spool.Spool.remove hang",
    "host_agent.output.logspool.LogSpool.finish error",
    "host_agent.output.logspool.LogSpool.finish partial",
)

REPRESENTATIVE = (
    "host.disk._sync_folder error",
    "host_agent.ledger.Ledger.create kill-after",
    "host.link._set_families error",
    "host.link.ensure_veth partial",
    "host.native.open_tap error",
    "host.netns.ensure_netns kill-after",
    "host.disk.clone_file error",
    "host.slots._take_first kill-after",
    "host.cgroup.ensure_leaf error",
    "host_agent.keeper._start kill-after",
    "host_agent.keeper._open_outer error",
    "host_agent.keeper.Keeper._ask hang",
    "host_agent.guesttalk.Talk._hear_hello error",
    "host_agent.guesttalk.Talk._hear_output kill-before",
    "host_agent.guesttalk.Talk._hear_exit kill-after",
    "host_agent.output.spool.Spool.append error",
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

ALWAYS = frozenset({*REPRESENTATIVE, *FOUND})
