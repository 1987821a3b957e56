-- Whose turn it is, which keys sign, what each host last told, and every step of a job.

-- Shares: an org of weight 200 may hold twice the CPUs of one of weight 100 before that one is served first.
ALTER TABLE orgs ADD COLUMN weight integer NOT NULL DEFAULT 100 CHECK (weight BETWEEN 1 AND 10000);

-- Within an org the higher priority goes first; waiting makes up for it, so that nothing waits for ever.
ALTER TABLE label_aliases ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100);
ALTER TABLE jobs
    ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
    ADD COLUMN limited_until timestamptz,  -- kept: no machine is made before its org's budget has room, about then
    ADD COLUMN told_by text;  -- who made its last step known: user:NAME, github:WAY, or agent, clock, enrolment with :HOST
ALTER TABLE machines
    ADD COLUMN priority smallint NOT NULL DEFAULT 0,
    ADD COLUMN turn_at timestamptz NOT NULL DEFAULT now(),  -- when it was queued, earlier by what its priority is worth
    ADD COLUMN reserved_for text;          -- the agent that takes nothing else until it has room for this one
ALTER TABLE machines ALTER COLUMN turn_at SET DEFAULT clock_timestamp();
UPDATE machines SET turn_at = created_at WHERE state IN ('queued', 'leased', 'running');

-- What a grant reads: each org's queue in its order, who was served last, what a host holds, who makes room.
CREATE INDEX machines_turn ON machines (org_id, turn_at, machine_id) WHERE state = 'queued';
DROP INDEX machines_queued_of_org;
CREATE INDEX machines_served ON machines (org_id, leased_at) WHERE leased_at IS NOT NULL;
CREATE INDEX machines_reserved ON machines (arch) WHERE state = 'queued' AND reserved_for IS NOT NULL;

-- For which request a waiting agent was woken and how long it has to lease it. A table of its own, without a key to
-- machines: whoever locks a queued machine hides it from the grants of that moment. Nothing is lost with its rows.
CREATE UNLOGGED TABLE offers (
    machine_id bigint PRIMARY KEY,
    fence bigint NOT NULL,  -- queued anew under another fence, it is offered anew
    until timestamptz NOT NULL
);

-- Every step of every job, with its cause, whoever wrote it. Append-only.
CREATE TABLE job_events (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL REFERENCES jobs,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state_from text,
    state_to text NOT NULL,
    conclusion text,
    cause text,
    told_by text  -- as in jobs
);
CREATE INDEX job_events_of_job ON job_events (job_id, event_id);
INSERT INTO job_events (job_id, at, state_to, conclusion, cause, told_by)
SELECT job_id, coalesce(completed_at, started_at, queued_at), state, conclusion, cause,
       CASE source WHEN 'github' THEN 'github:' || coalesce(repaired_by, learned_by) END
FROM jobs ORDER BY job_id;
CREATE TRIGGER job_events_append_only BEFORE UPDATE OR DELETE ON job_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE FUNCTION note_job_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_events (job_id, state_from, state_to, conclusion, cause, told_by)
    VALUES (NEW.job_id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state, NEW.conclusion, NEW.cause, NEW.told_by);
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_noted_new AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION note_job_step();
CREATE TRIGGER jobs_noted AFTER UPDATE OF state, conclusion ON jobs FOR EACH ROW
    WHEN (NEW.state IS DISTINCT FROM OLD.state OR NEW.conclusion IS DISTINCT FROM OLD.conclusion)
    EXECUTE FUNCTION note_job_step();

-- What lists of jobs ask for, however long the history: what is everyday (a job that succeeded, told by a webhook) is
-- found by walking back from the newest, what is rare by an index of its own.
DROP INDEX jobs_open;
CREATE INDEX jobs_kept ON jobs (org_id, job_id) WHERE limited_until IS NOT NULL;
CREATE INDEX jobs_not_completed ON jobs (state, job_id DESC) WHERE state <> 'completed';
CREATE INDEX jobs_of_repo ON jobs (repo_id, job_id DESC) WHERE repo_id IS NOT NULL;
CREATE INDEX jobs_not_successful ON jobs (conclusion, job_id DESC) WHERE conclusion <> 'success';
CREATE INDEX jobs_by_way ON jobs (learned_by, job_id DESC) WHERE learned_by <> 'webhook';
CREATE INDEX jobs_by_name ON jobs (left(name, 64) text_pattern_ops);
CREATE INDEX jobs_by_label ON jobs USING gin (labels) WITH (fastupdate = off) WHERE source = 'github';
ALTER TABLE jobs ALTER COLUMN labels SET STATISTICS 300;  -- else a rare label is taken for one of every 200th job
CREATE INDEX jobs_by_time ON jobs USING brin (queued_at) WITH (autosummarize = on, pages_per_range = 32);
-- And what an estimate is measured by: the newest ends of leases.
CREATE INDEX machine_events_ends ON machine_events (event_id DESC)
    WHERE state_from IN ('leased', 'running') AND state_to NOT IN ('leased', 'running');

-- Tokens that an operator ended before their time: ids only, kept while the token could still be shown.
CREATE TABLE revoked_tokens (
    jti text PRIMARY KEY,
    expires_at timestamptz,  -- null: the operator knew only the id, so it is kept for good
    revoked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    revoked_by text NOT NULL
);

-- A key is published before it signs, signs until the next one does, and is accepted while tokens of it may live.
-- Its private half is deleted when it signs no more; the public one is all that is needed from then on.
ALTER TABLE signing_keys
    ADD COLUMN purpose text NOT NULL DEFAULT 'agent' CHECK (purpose IN ('agent', 'machine')),
    ADD COLUMN signs_from timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN accepted_until timestamptz,  -- null: until a successor signs
    ADD COLUMN revoked_at timestamptz,      -- at once, whatever it signed
    ADD COLUMN public_x text,               -- null: still to be taken from the private half
    ALTER COLUMN private_pem DROP NOT NULL,
    ADD CHECK (private_pem IS NOT NULL OR public_x IS NOT NULL);

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

-- The whole queue in the order in which a host that fits all would be given it, if nothing ended meanwhile: what the
-- grant does, told ahead. Those that a cap of their org or label holds back come last.
CREATE VIEW queue_order AS
WITH queued AS (
    SELECT m.machine_id, m.org_id, m.turn_at, m.reserved_for, (m.shape->>'cpus')::integer AS cpus,
           a.max_machines < h.held + row_number() OVER (PARTITION BY m.org_id, m.alias ORDER BY m.turn_at, m.machine_id)
               AS alias_full
    FROM machines m
    LEFT JOIN label_aliases a ON a.org_id = m.org_id AND a.alias = m.alias AND a.max_machines IS NOT NULL
    LEFT JOIN LATERAL (
        SELECT count(*) AS held FROM machines c
        WHERE c.org_id = a.org_id AND c.alias = a.alias AND c.state IN ('leased', 'running')
    ) h ON true
    WHERE m.state = 'queued' AND NOT m.cancel_requested
), held AS (
    SELECT org_id, count(*) AS machines, sum((shape->>'cpus')::integer) AS cpus
    FROM machines WHERE state IN ('leased', 'running') GROUP BY org_id
), lines AS (
    SELECT q.machine_id, q.org_id, q.turn_at, q.reserved_for, q.cpus, coalesce(q.alias_full, false) AS alias_full,
           row_number() OVER (PARTITION BY q.org_id ORDER BY q.turn_at, q.machine_id) AS place,
           count(*) OVER (PARTITION BY q.org_id) AS length,
           coalesce(h.machines, 0) + row_number() OVER line AS machines_then,
           coalesce(h.cpus, 0) + sum(q.cpus) OVER line AS cpus_then
    FROM queued q LEFT JOIN held h USING (org_id)
    WINDOW line AS (PARTITION BY q.org_id, coalesce(q.alias_full, false) ORDER BY q.turn_at, q.machine_id
                    ROWS UNBOUNDED PRECEDING)
), turns AS (
    SELECT l.*, (l.cpus_then - l.cpus)::double precision / o.weight AS share,
           row_number() OVER line > 1 AS later, first_value(l.turn_at) OVER line AS since,
           lag((l.cpus_then - l.cpus)::double precision / o.weight) OVER line AS before,
           coalesce(extract(epoch FROM statement_timestamp() - s.served_at) * o.weight, 'infinity') AS unserved,
           coalesce(l.alias_full OR l.machines_then > o.max_machines OR l.cpus_then > o.max_cpus, false) AS held_back
    FROM lines l JOIN orgs o USING (org_id)
    LEFT JOIN LATERAL (SELECT max(leased_at) AS served_at FROM machines m WHERE m.org_id = o.org_id) s ON true
    WINDOW line AS (PARTITION BY l.org_id, l.alias_full ORDER BY l.turn_at, l.machine_id)
)
SELECT t.machine_id, t.org_id, t.place, t.length,
       row_number() OVER (ORDER BY t.held_back, t.share, t.later, t.before, t.unserved DESC, t.since, t.turn_at,
                                   t.machine_id) - 1 AS ahead,
       t.held_back, r.agent_id AS reserved_for
FROM turns t
LEFT JOIN agents r ON r.agent_id = t.reserved_for AND r.wanted = 'working' AND r.barred IS NULL
                  AND r.last_seen > statement_timestamp() - interval '2 minutes'
                  AND (r.doing IS NULL OR r.doing NOT IN ('draining', 'drained', 'leaving'));
