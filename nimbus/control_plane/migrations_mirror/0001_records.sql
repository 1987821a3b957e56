-- What each host last told of its ledger: a copy to look at. Nothing is recovered from it and nothing is decided by it.

CREATE TABLE agent_reports (
    agent_id text PRIMARY KEY,
    life text NOT NULL,
    start bigint NOT NULL,
    beat bigint NOT NULL,  -- of two reports of one life the one with the higher start, then beat, is the later
    told_at timestamptz NOT NULL DEFAULT clock_timestamp()  -- since then the host has told the same
);

CREATE TABLE agent_records (
    agent_id text NOT NULL REFERENCES agent_reports ON DELETE CASCADE,
    vm text NOT NULL,
    state text NOT NULL,
    machine_id bigint,  -- null: it has no lease
    fence bigint,
    claims text[] NOT NULL,
    lease_until timestamptz,  -- until when its host lets it run without a renewal, within a minute
    since timestamptz NOT NULL DEFAULT clock_timestamp(),  -- in this state
    PRIMARY KEY (agent_id, vm)
);
CREATE INDEX agent_records_of_machine ON agent_records (machine_id) WHERE machine_id IS NOT NULL;
