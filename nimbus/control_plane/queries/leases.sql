-- name: grant_lease
-- One statement: no other agent can see the row between choosing and taking it.
WITH chosen AS (
    SELECT machine_id
    FROM machines
    WHERE state = 'queued'
      AND NOT cancel_requested
      AND (shape->>'cpus')::integer <= $2
      AND (shape->>'mem_mib')::integer <= $3
      AND ($6::bigint IS NULL OR (shape->>'disk_mib')::bigint <= $6)
      AND (kind = 'command' OR cardinality($4::text[]) = 0 OR labels <@ $4::text[])
    ORDER BY machine_id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE machines
    SET state = 'leased',
        fence = fence + 1,
        lease_id = gen_random_uuid(),
        agent_id = $1,
        leased_at = clock_timestamp(),
        deadline = clock_timestamp() + make_interval(secs => $5::double precision),
        attempts = attempts + 1,
        ending = NULL, exit_code = NULL, signal = NULL, cause = NULL, phases = NULL
    FROM chosen
    WHERE machines.machine_id = chosen.machine_id AND machines.state = 'queued'
    RETURNING machines.*
), noted AS (
    INSERT INTO machine_events (machine_id, state_from, state_to, event, fence)
    SELECT machine_id, 'queued', 'leased', 'lease', fence FROM taken
)
SELECT * FROM taken

-- name: lock_held
-- The row, if the caller's lease is the last one that was granted for it.
SELECT m.*, j.state AS job_state, m.deadline > clock_timestamp() AS alive
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.machine_id = $1 AND m.lease_id = $2::uuid AND m.fence = $3 AND m.agent_id = $4
FOR UPDATE OF m

-- name: renew
-- The guard stands here again: a deadline is never moved for a lease that has ended, and never moved back,
-- because a holder may not have heard of the shorter one.
UPDATE machines
SET state = $5,
    deadline = greatest(deadline, clock_timestamp() + make_interval(secs => $6::double precision))
WHERE machine_id = $1 AND lease_id = $2::uuid AND fence = $3 AND agent_id = $4
  AND state IN ('leased', 'running') AND deadline > clock_timestamp()
RETURNING cancel_requested

-- name: lock_expired
SELECT m.*, j.state AS job_state, false AS alive
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.state IN ('leased', 'running') AND m.deadline <= clock_timestamp()
ORDER BY m.deadline
LIMIT 100
FOR UPDATE OF m SKIP LOCKED

-- name: lock_given_up
-- The leases of an agent that starts anew, but for those it still holds.
SELECT m.*, j.state AS job_state, false AS alive
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.state IN ('leased', 'running') AND m.agent_id = $1 AND NOT m.lease_id = ANY ($2::uuid[])
ORDER BY m.machine_id
FOR UPDATE OF m

-- name: end_lease
-- $2 is the next state. lease_id stays for a holder that reports twice, and goes when it fell silent ($8).
UPDATE machines
SET state = $2,
    deadline = NULL,
    ending = $3, exit_code = $4, signal = $5, cause = $6, phases = $7,
    lease_id = CASE WHEN $8 THEN NULL ELSE lease_id END,
    finished_at = CASE WHEN $2 = 'queued' THEN NULL ELSE clock_timestamp() END
WHERE machine_id = $1

-- name: note
INSERT INTO machine_events (machine_id, state_from, state_to, event, cause, fence) VALUES ($1, $2, $3, $4, $5, $6)

-- name: start_command_job
UPDATE jobs SET state = 'in_progress', started_at = coalesce(started_at, clock_timestamp())
WHERE job_id = $1 AND source = 'api' AND state = 'queued'

-- name: end_job
-- A forge's word stands: only a job that is still open is changed.
UPDATE jobs
SET state = $2, conclusion = $3, cause = $4,
    started_at = CASE WHEN $2 = 'queued' THEN NULL ELSE started_at END,
    completed_at = CASE WHEN $2 IN ('completed', 'lost') THEN clock_timestamp() END
WHERE job_id = $1 AND state IN ('queued', 'in_progress')

-- name: seen_agent
UPDATE agents SET last_seen = clock_timestamp() WHERE agent_id = $1
