-- name: queue_machine
WITH queued AS (
    INSERT INTO machines (org_id, kind, job_id, repo_id, labels, shape, image, command, webhook_at, installation_id,
                          host_labels, arch, alias, priority, turn_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
            clock_timestamp() - make_interval(secs => $15::double precision))
    RETURNING machine_id
)
INSERT INTO machine_events (machine_id, state_to, event, fence)
SELECT machine_id, 'queued', 'queue', 0 FROM queued
RETURNING machine_id

-- name: lock_machine
SELECT machine_id, state, fence, agent_id, cancel_requested, kind, job_id FROM machines WHERE machine_id = $1 FOR UPDATE

-- name: cancel_queued
UPDATE machines
SET state = 'cancelled', cancel_requested = true, cause = $2, finished_at = clock_timestamp()
WHERE machine_id = $1 AND state = 'queued'

-- name: request_cancel
UPDATE machines SET cancel_requested = true WHERE machine_id = $1 AND state IN ('leased', 'running')

-- name: note_cancel
INSERT INTO machine_events (machine_id, state_from, state_to, event, cause, fence, agent_id, told_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
