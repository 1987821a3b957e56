-- name: end_lease
-- $2 is the next state. lease_id stays for a holder that reports twice, and goes when it fell silent ($8).
UPDATE machines
SET state = $2,
    deadline = NULL,
    ending = $3, exit_code = $4, signal = $5, cause = $6, phases = $7, attestation = $10,
    failures = failures + $9::integer,
    lease_id = CASE WHEN $8 THEN NULL ELSE lease_id END,
    finished_at = CASE WHEN $2 = 'queued' THEN NULL ELSE clock_timestamp() END
WHERE machine_id = $1 AND state IN ('leased', 'running')

-- name: note
INSERT INTO machine_events (machine_id, state_from, state_to, event, cause, fence, agent_id, told_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)

-- name: end_job
-- A forge's word stands: only a job that is still open is changed.
UPDATE jobs
SET state = $2, conclusion = $3, cause = $4, told_by = $5,
    started_at = CASE WHEN $2 = 'queued' THEN NULL ELSE started_at END,
    completed_at = CASE WHEN $2 IN ('completed', 'lost') THEN clock_timestamp() END
WHERE job_id = $1 AND state IN ('queued', 'in_progress')

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
