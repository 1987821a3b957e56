-- name: org_of_machine
SELECT org_id FROM machines WHERE machine_id = $1

-- name: scope_of_machine
SELECT m.org_id, m.repo_id, m.labels, m.installation_id, m.fence, m.runner_name, m.runner_id, o.login, r.name AS repo,
       (SELECT deployment_id FROM deployment) AS deployment_id
FROM machines m JOIN orgs o USING (org_id) LEFT JOIN repos r ON r.repo_id = m.repo_id
WHERE m.machine_id = $1

-- name: count_waiting
-- Other runners of the label set that GitHub knows (or may know) and that have no job yet.
SELECT count(*) FROM machines
WHERE org_id = $1 AND repo_id IS NOT DISTINCT FROM $2 AND labels = $3::text[] AND kind = 'runner'
  AND state IN ('leased', 'running') AND job_id IS NULL AND runner_id IS NOT NULL AND NOT cancel_requested
  AND machine_id <> $4

-- name: intend_runner
-- Written before GitHub is asked: 0 says that a runner of this name may exist, whose id we don't know.
UPDATE machines SET runner_name = $2, runner_fence = fence, runner_id = 0, registered_at = NULL WHERE machine_id = $1

-- name: record_runner
UPDATE machines SET runner_id = $2, registered_at = clock_timestamp() WHERE machine_id = $1

-- name: superfluous
-- Registrations whose machine has ended or is queued again. GitHub itself removes a runner whose job completed.
SELECT m.machine_id, m.runner_name, m.runner_id, m.installation_id, o.login, r.name AS repo,
       coalesce(j.state = 'completed', false) AS served
FROM machines m JOIN orgs o USING (org_id) LEFT JOIN repos r ON r.repo_id = m.repo_id
     LEFT JOIN jobs j ON j.job_id = m.job_id
WHERE m.runner_id IS NOT NULL AND m.state NOT IN ('leased', 'running') AND NOT m.machine_id = ANY ($1::bigint[])
ORDER BY m.machine_id
LIMIT 50

-- name: forget_runner
UPDATE machines SET runner_id = NULL
WHERE machine_id = $1 AND runner_name = $2 AND state NOT IN ('leased', 'running')

-- name: idle_surplus
-- Registered and without a job, beyond what the queued jobs of the label set can use; the oldest stay.
SELECT * FROM (
    SELECT m.machine_id, m.runner_name, m.runner_id, m.installation_id, m.org_id, m.repo_id, m.labels, o.login,
           r.name AS repo,
           row_number() OVER (PARTITION BY m.org_id, m.repo_id, m.labels ORDER BY m.machine_id) AS place,
           (SELECT count(*) FROM jobs j
            WHERE j.org_id = m.org_id AND (m.repo_id IS NULL OR j.repo_id = m.repo_id) AND j.source = 'github'
              AND j.state = 'queued' AND j.labels = m.labels) AS wanted
    FROM machines m JOIN orgs o USING (org_id) LEFT JOIN repos r ON r.repo_id = m.repo_id
    WHERE m.kind = 'runner' AND m.runner_id > 0 AND m.job_id IS NULL AND m.state IN ('leased', 'running')
      AND NOT m.cancel_requested
) idle
WHERE place > wanted AND NOT machine_id = ANY ($1::bigint[])
LIMIT 50

-- name: lock_idle
SELECT machine_id FROM machines WHERE machine_id = $1 AND runner_name = $2 AND state IN ('leased', 'running') FOR UPDATE

-- name: clear_runner
UPDATE machines SET runner_id = NULL WHERE machine_id = $1 AND runner_name = $2
