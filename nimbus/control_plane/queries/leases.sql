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
        answered = false,
        deadline = clock_timestamp() + make_interval(secs => $5::double precision),
        attempts = attempts + 1,
        ending = NULL, exit_code = NULL, signal = NULL, cause = NULL, phases = NULL, attestation = NULL,
        usage = NULL, usage_at = NULL
    FROM chosen
    WHERE machines.machine_id = chosen.machine_id AND machines.state = 'queued'
    RETURNING machines.*
), noted AS (
    INSERT INTO machine_events (machine_id, state_from, state_to, event, fence, agent_id, told_by)
    SELECT machine_id, 'queued', 'leased', 'lease', fence, agent_id, 'agent' FROM taken
)
SELECT * FROM taken

-- name: lock_held
-- The row, if the caller's lease is the last one that was granted for it.
SELECT m.*, j.state AS job_state, coalesce(m.deadline > clock_timestamp(), false) AS alive
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.machine_id = $1 AND m.lease_id = $2::uuid AND m.fence = $3 AND m.agent_id = $4
FOR UPDATE OF m

-- name: renew
-- The guard stands here again: a deadline is never moved for a lease that has ended, and never moved back,
-- because a holder may not have heard of the shorter one. While granting pauses, a deadline that is past tells nothing.
UPDATE machines
SET state = $5,
    answered = true,
    deadline = greatest(deadline, clock_timestamp() + make_interval(secs => $6::double precision)),
    usage = coalesce($7::jsonb, usage),
    usage_at = CASE WHEN $7::jsonb IS NULL THEN usage_at ELSE clock_timestamp() END
WHERE machine_id = $1 AND lease_id = $2::uuid AND fence = $3 AND agent_id = $4
  AND state IN ('leased', 'running')
  AND (deadline > clock_timestamp() OR (SELECT grants_paused_until > clock_timestamp() FROM database_watch))
RETURNING cancel_requested

-- name: first_answer
-- What the end of this very lease came to, for a holder whose reply was lost.
SELECT state_to FROM machine_events
WHERE machine_id = $1 AND fence = $2
  AND state_from IN ('leased', 'running') AND state_to NOT IN ('leased', 'running')

-- name: start_command_job
UPDATE jobs SET state = 'in_progress', started_at = coalesce(started_at, clock_timestamp())
WHERE job_id = $1 AND source = 'api' AND state = 'queued'

-- name: seen_agent
UPDATE agents SET last_seen = clock_timestamp() WHERE agent_id = $1
