-- name: end_lease
-- One statement: the machine's row, its event, and its job where $12 is that one's next state. $2 is the machine's, $11
-- the step. lease_id stays for a holder that reports twice, and goes when it fell silent ($8). Of a job, a forge's word
-- stands: only one that is still open is changed.
WITH held AS (
    SELECT machine_id, state FROM machines WHERE machine_id = $1 AND state IN ('leased', 'running') FOR UPDATE
), ended AS (
    UPDATE machines m
    SET state = $2,
        deadline = NULL,
        ending = $3, exit_code = $4, signal = $5, cause = $6, phases = $7, attestation = $10,
        failures = m.failures + $9::integer,
        lease_id = CASE WHEN $8 THEN NULL ELSE m.lease_id END,
        finished_at = CASE WHEN $2 = 'queued' THEN NULL ELSE clock_timestamp() END
    FROM held
    WHERE m.machine_id = held.machine_id
    RETURNING m.machine_id, m.job_id, m.fence, m.agent_id, held.state AS state_from
), noted AS (
    INSERT INTO machine_events (machine_id, state_from, state_to, event, cause, fence, agent_id, told_by)
    SELECT machine_id, state_from, $2, $11, $6, fence, agent_id, $15::text FROM ended
)
UPDATE jobs
SET state = $12, conclusion = $13, cause = $14, told_by = $15::text || ':' || ended.agent_id,
    started_at = CASE WHEN $12 = 'queued' THEN NULL ELSE started_at END,
    completed_at = CASE WHEN $12 IN ('completed', 'lost') THEN clock_timestamp() END
FROM ended
WHERE jobs.job_id = ended.job_id AND $12::text IS NOT NULL AND jobs.state IN ('queued', 'in_progress')

-- name: lock_expired
SELECT m.*, j.state AS job_state
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.state IN ('leased', 'running') AND m.deadline <= clock_timestamp()
ORDER BY m.deadline
LIMIT 100
FOR UPDATE OF m SKIP LOCKED

-- name: lock_given_up
-- The leases of an agent that starts anew, but for those it still holds: the same machine, lease and fence.
SELECT m.*, j.state AS job_state
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.state IN ('leased', 'running') AND m.agent_id = $1
  AND NOT EXISTS (
      SELECT FROM unnest($2::bigint[], $3::uuid[], $4::bigint[]) AS held (machine_id, lease_id, fence)
      WHERE (held.machine_id, held.lease_id, held.fence) = (m.machine_id, m.lease_id, m.fence))
ORDER BY m.machine_id
FOR UPDATE OF m
