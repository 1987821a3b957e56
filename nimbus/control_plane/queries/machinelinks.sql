-- name: link_of_lease
-- Which job the machine is for, where it was ever leased under that fence. No job yet: a runner that waits for one.
SELECT m.machine_id, $2::bigint AS fence, m.org_id, j.job_id, j.repo_id, j.run_attempt
FROM machines m LEFT JOIN jobs j ON j.job_id = m.job_id AND j.org_id = m.org_id
WHERE m.machine_id = $1
  AND EXISTS (SELECT FROM machine_events e WHERE e.machine_id = $1 AND e.fence = $2 AND e.event = 'lease')
