-- name: org_of_machine
SELECT org_id FROM machines WHERE machine_id = $1

-- name: scope_of_machine
SELECT m.org_id, m.repo_id, m.labels, m.installation_id, m.fence, m.runner_name, m.runner_id, o.login,
       o.runner_group_id, r.name AS repo, (SELECT deployment_id FROM deployment) AS deployment_id,
       (SELECT removed FROM installations i WHERE i.installation_id = m.installation_id AND i.org_id = m.org_id) AS removed
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
UPDATE machines
SET runner_name = $2, runner_fence = fence, runner_id = 0, registered_at = NULL, installation_id = $3
WHERE machine_id = $1

-- name: record_runner
UPDATE machines SET runner_id = $2, registered_at = clock_timestamp() WHERE machine_id = $1
