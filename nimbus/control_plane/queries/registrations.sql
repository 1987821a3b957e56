-- name: superfluous
-- Registrations whose machine has ended or is queued again. GitHub itself removes a runner whose job completed, and
-- one that was offline for a day. A runner that ended in good order has served a job, most likely: its event may be on
-- its way for $3 seconds, and then it is looked for before it is deleted, as whatever may have served one is; but for
-- those registered less than $4 seconds ago, which a look might not find. What GitHub refuses has its time.
SELECT m.machine_id, m.runner_name, m.runner_id, m.installation_id, o.login, r.name AS repo, s.serving_id,
       coalesce(j.state = 'completed', false) AS served,
       (m.state = 'done' OR m.job_id IS NOT NULL
        OR m.registered_at < clock_timestamp() - make_interval(secs => $4::double precision)) AS doubtful,
       coalesce(m.finished_at < clock_timestamp() - make_interval(secs => $2::double precision), false) AS given_up
FROM machines m JOIN orgs o USING (org_id) LEFT JOIN repos r ON r.repo_id = m.repo_id
     LEFT JOIN jobs j ON j.job_id = m.job_id
     LEFT JOIN LATERAL (
         SELECT i.installation_id AS serving_id FROM installations i
         WHERE i.org_id = m.org_id AND NOT i.removed ORDER BY i.suspended, i.installation_id DESC LIMIT 1) s ON true
WHERE m.runner_id IS NOT NULL AND m.state NOT IN ('leased', 'running') AND NOT m.machine_id = ANY ($1::bigint[])
  AND (m.state <> 'done' OR j.state = 'completed'
       OR m.finished_at < clock_timestamp() - make_interval(secs => $3::double precision))
  AND (j.state = 'completed' OR NOT EXISTS (
      SELECT FROM forge_problems p
      WHERE p.installation_id = coalesce(s.serving_id, m.installation_id) AND p.scope IN ('', r.name)
        AND p.task <> 'read' AND p.retry_at > clock_timestamp()))
ORDER BY m.machine_id
LIMIT 50

-- name: forget_runner
UPDATE machines SET runner_id = NULL
WHERE machine_id = $1 AND runner_name = $2 AND state NOT IN ('leased', 'running')

-- name: idle_surplus
-- Registered and without a job: beyond what the queued jobs of the label set can use (the oldest stay), or for longer
-- than $2 seconds, as many jobs as may be queued.
SELECT * FROM (
    SELECT m.machine_id, m.runner_name, m.runner_id, m.installation_id, m.org_id, m.repo_id, m.labels, o.login,
           r.name AS repo,
           (SELECT i.installation_id FROM installations i
            WHERE i.org_id = m.org_id AND NOT i.removed ORDER BY i.suspended, i.installation_id DESC LIMIT 1) AS serving_id,
           $2::double precision > 0
               AND m.registered_at < clock_timestamp() - make_interval(secs => $2::double precision) AS in_vain,
           row_number() OVER (PARTITION BY m.org_id, m.repo_id, m.labels ORDER BY m.machine_id) AS place,
           (SELECT count(*) FROM jobs j
            WHERE j.org_id = m.org_id AND (m.repo_id IS NULL OR j.repo_id = m.repo_id) AND j.source = 'github'
              AND j.state = 'queued' AND j.refusal IS NULL AND j.labels = m.labels) AS wanted
    FROM machines m JOIN orgs o USING (org_id) LEFT JOIN repos r ON r.repo_id = m.repo_id
    WHERE m.kind = 'runner' AND m.registered_at IS NOT NULL AND m.runner_id IS NOT NULL AND m.runner_fence = m.fence
      AND m.job_id IS NULL AND m.state IN ('leased', 'running') AND NOT m.cancel_requested
) idle
WHERE (place > wanted OR in_vain) AND NOT machine_id = ANY ($1::bigint[])
ORDER BY machine_id
LIMIT 50

-- name: lock_registered
SELECT machine_id FROM machines
WHERE machine_id = $1 AND runner_name = $2 AND runner_fence = fence AND state IN ('leased', 'running')
FOR UPDATE

-- name: note_wasted
UPDATE machines SET wasted_at = clock_timestamp() WHERE machine_id = $1

-- name: clear_runner
UPDATE machines SET runner_id = NULL WHERE machine_id = $1 AND runner_name = $2

-- name: overdue
-- Their job ended long ago, and they have not. A limit of 0 is none.
SELECT m.machine_id
FROM machines m JOIN jobs j USING (job_id)
WHERE m.kind = 'runner' AND m.state IN ('leased', 'running') AND NOT m.cancel_requested AND j.state = 'completed'
  AND $1::double precision > 0
  AND coalesce(j.completed_at, j.checked_at, j.started_at) < clock_timestamp() - make_interval(secs => $1::double precision)
ORDER BY m.machine_id
LIMIT 100
FOR UPDATE OF m SKIP LOCKED
