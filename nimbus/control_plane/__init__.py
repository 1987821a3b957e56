"""Room: webhooks, demand, queue, leases, agents and tokens. Postgres is its truth."""
