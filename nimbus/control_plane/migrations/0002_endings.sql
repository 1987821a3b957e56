-- One end for each lease, told by whom; what a VM used; which database this is and how its clock went on.

ALTER TABLE machines
    ADD COLUMN usage jsonb,              -- as the last renewal under the newest lease told it
    ADD COLUMN usage_at timestamptz,
    ADD COLUMN failures integer NOT NULL DEFAULT 0;  -- leases that came to nothing; `attempts` counts all

-- What was counted as an attempt until now was a failure, but for the lease that is held.
UPDATE machines SET failures = greatest(0, attempts - 1) WHERE state IN ('leased', 'running');
UPDATE machines SET failures = attempts WHERE state = 'queued';

ALTER TABLE machine_events
    ADD COLUMN agent_id text,
    ADD COLUMN told_by text;  -- agent: the holder itself; clock: the deadline; enrolment: its agent's next life

-- What no bug may do, whatever the code's own guards say.
CREATE UNIQUE INDEX machine_events_one_grant ON machine_events (machine_id, fence) WHERE event = 'lease';
CREATE UNIQUE INDEX machine_events_one_end ON machine_events (machine_id, fence)
    WHERE state_from IN ('leased', 'running') AND state_to NOT IN ('leased', 'running');
CREATE UNIQUE INDEX machine_events_one_terminal ON machine_events (machine_id)
    WHERE state_to IN ('done', 'failed', 'cancelled', 'lost');

-- The last look at this database's clock, by each host and between two readings of that host's own.
CREATE TABLE clock_sights (
    boot_id text PRIMARY KEY,
    clock timestamptz NOT NULL,
    before_s double precision NOT NULL,
    after_s double precision NOT NULL
);

-- Which database this was at the last look, and whether granting pauses for what was seen.
CREATE TABLE database_watch (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    identity text,
    grants_paused_until timestamptz,
    pause_cause text
);
INSERT INTO database_watch DEFAULT VALUES;

-- System identifier and timeline: a promoted replica has another timeline, a restored dump another system.
-- Not pg_control_checkpoint(): for a while after a promotion it still shows the timeline before.
-- Where a server keeps them to itself, its start stands in for them: every restart then counts as a change.
CREATE FUNCTION database_identity() RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT system_identifier::text FROM pg_control_system())
        || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8);
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_function THEN
    RETURN 'started/' || extract(epoch FROM pg_postmaster_start_time());
END $$;
