-- Whose turn it is, which keys sign, what each host last told, and every step of a job.

-- Shares: an org of weight 200 may hold twice the CPUs of one of weight 100 before that one is served first.
ALTER TABLE orgs ADD COLUMN weight integer NOT NULL DEFAULT 100 CHECK (weight BETWEEN 1 AND 10000);

-- Within an org the higher priority goes first; waiting makes up for it, so that nothing waits for ever.
ALTER TABLE label_aliases ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100);
ALTER TABLE jobs
    ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
    ADD COLUMN limited_until timestamptz;  -- its org asks too often: no machine is made for it before that
ALTER TABLE machines
    ADD COLUMN priority smallint NOT NULL DEFAULT 0,
    ADD COLUMN offered_until timestamptz,  -- a waiting agent was woken for it and has so long to lease it
    ADD COLUMN reserved_for text,          -- the agent that takes nothing else until it has room for this one
    ADD COLUMN reserved_until timestamptz;

-- Every step of every job, with its cause, whoever wrote it. Append-only.
CREATE TABLE job_events (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL REFERENCES jobs,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state_from text,
    state_to text NOT NULL,
    conclusion text,
    cause text,
    learned text NOT NULL  -- by which way we came to know: webhook, redelivery, poll, api
);
CREATE INDEX job_events_of_job ON job_events (job_id, event_id);
INSERT INTO job_events (job_id, at, state_to, conclusion, cause, learned)
SELECT job_id, coalesce(completed_at, started_at, queued_at), state, conclusion, cause, coalesce(repaired_by, learned_by)
FROM jobs ORDER BY job_id;
CREATE TRIGGER job_events_append_only BEFORE UPDATE OR DELETE ON job_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE FUNCTION note_job_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_events (job_id, state_from, state_to, conclusion, cause, learned)
    VALUES (NEW.job_id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state, NEW.conclusion, NEW.cause,
            CASE WHEN TG_OP = 'INSERT' THEN NEW.learned_by
                 WHEN NEW.repaired_by IS DISTINCT FROM OLD.repaired_by THEN NEW.repaired_by
                 WHEN NEW.source = 'api' THEN 'api' ELSE 'webhook' END);
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_noted_new AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION note_job_step();
CREATE TRIGGER jobs_noted AFTER UPDATE OF state, conclusion ON jobs FOR EACH ROW
    WHEN (NEW.state IS DISTINCT FROM OLD.state OR NEW.conclusion IS DISTINCT FROM OLD.conclusion)
    EXECUTE FUNCTION note_job_step();

-- Tokens that an operator ended before their time: ids only, kept while the token could still be shown.
CREATE TABLE revoked_tokens (
    jti text PRIMARY KEY,
    expires_at timestamptz,  -- null: the operator knew only the id, so it is kept for good
    revoked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    revoked_by text NOT NULL
);

-- A key is published before it signs, signs until the next one does, and is accepted while tokens of it may live.
ALTER TABLE signing_keys
    ADD COLUMN purpose text NOT NULL DEFAULT 'agent' CHECK (purpose IN ('agent', 'machine')),
    ADD COLUMN signs_from timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN accepted_until timestamptz,  -- null: until a successor signs
    ADD COLUMN revoked_at timestamptz;      -- at once, whatever it signed

-- What a host last told of itself, and what its operator wants of it.
ALTER TABLE agents
    ADD COLUMN free_cpus integer,
    ADD COLUMN free_mem_mib integer,
    ADD COLUMN free_slots integer,
    ADD COLUMN slots integer,
    ADD COLUMN free_disk_mib bigint,
    ADD COLUMN disk_mib bigint,
    ADD COLUMN vmm text,
    ADD COLUMN pool jsonb,            -- machines that wait there for a job, by kind
    ADD COLUMN heartbeat_at timestamptz,
    ADD COLUMN doing text,            -- as it says itself: working, cordoned, draining, drained, leaving
    ADD COLUMN life text,             -- of the last heartbeat: boot id and ledger, as `boot_id` at the enrolment
    ADD COLUMN former_life text,      -- the one before; a life that returns is a second host of the same name
    ADD COLUMN former_at timestamptz,
    ADD COLUMN rival_at timestamptz,
    ADD COLUMN mirrored text,         -- digest of the records that the mirror holds; null: it does not hold the last
    ADD COLUMN barred text,           -- why it is granted nothing whatever is wanted, in words: it is too old
    ADD COLUMN wanted text NOT NULL DEFAULT 'working' CHECK (wanted IN ('working', 'cordoned', 'drained')),
    ADD COLUMN wanted_by text,
    ADD COLUMN wanted_at timestamptz;
CREATE INDEX agents_not_granted ON agents (agent_id) WHERE wanted <> 'working' OR barred IS NOT NULL;
