-- name: default_org
SELECT org_id FROM orgs WHERE forge = 'local' AND forge_id = 0

-- name: org_exists
SELECT EXISTS (SELECT FROM orgs WHERE org_id = $1)

-- name: lock_org
-- Submissions of one org take turns, so that a limit is a limit and a key is looked up once.
SELECT pg_advisory_xact_lock(hashtextextended('nimbus.jobs', $1))

-- name: job_by_key
SELECT job_id, state, command FROM jobs WHERE org_id = $1 AND idempotency_key = $2

-- name: machine_of_job
SELECT machine_id, image, shape, arch FROM machines WHERE job_id = $1 ORDER BY machine_id DESC LIMIT 1

-- name: count_recent
SELECT count(*) FROM jobs
WHERE org_id = $1 AND source = 'api' AND queued_at > clock_timestamp() - make_interval(secs => $2::double precision)

-- name: insert_job
INSERT INTO jobs (org_id, source, name, state, queued_at, learned_by, command, idempotency_key)
VALUES ($1, 'api', $2, 'queued', clock_timestamp(), 'api', $3, $4)
RETURNING job_id

-- name: find_job
-- By our id, else by the forge's. $2 is the caller's org, null for all. The command is left out: it may hold secrets.
SELECT job_id, org_id, repo_id, source, forge_job_id, run_id, run_attempt, name, workflow_name, labels, state,
       conclusion, runner_name, html_url, queued_at, started_at, completed_at, cause, learned_by, repaired_by
FROM jobs
WHERE (job_id = $1 OR forge_job_id = $1) AND ($2::bigint IS NULL OR org_id = $2)
ORDER BY (job_id = $1) DESC
LIMIT 1

-- name: recent_jobs
SELECT job_id, org_id, repo_id, source, forge_job_id, run_id, run_attempt, name, workflow_name, labels, state,
       conclusion, runner_name, html_url, queued_at, started_at, completed_at, cause, learned_by, repaired_by
FROM jobs
WHERE $1::bigint IS NULL OR org_id = $1
ORDER BY job_id DESC
LIMIT $2

-- name: machines_of_jobs
SELECT machine_id, job_id, state, fence, agent_id, image, shape, arch, attempts, ending, exit_code, signal, cause, phases,
       attestation, usage, failures, cancel_requested, webhook_at, created_at, leased_at, usage_at, finished_at
FROM machines WHERE job_id = ANY ($1::bigint[]) ORDER BY machine_id

-- name: leases_of_job
-- Every lease under which a machine of the job may have written output.
SELECT e.machine_id, e.fence
FROM machine_events e JOIN machines m USING (machine_id)
WHERE m.job_id = $1 AND e.event = 'lease'
ORDER BY e.event_id

-- name: cancel_job
UPDATE jobs SET state = 'completed', conclusion = 'cancelled', completed_at = clock_timestamp(), cause = $2
WHERE job_id = $1 AND state IN ('waiting', 'queued')

-- name: count_machines
SELECT state, count(*) AS machines FROM machines WHERE $1::bigint IS NULL OR org_id = $1 GROUP BY state

-- name: count_jobs
SELECT state, count(*) AS jobs FROM jobs WHERE $1::bigint IS NULL OR org_id = $1 GROUP BY state

-- name: oldest_queued
SELECT extract(epoch FROM clock_timestamp() - min(created_at))::double precision
FROM machines WHERE state = 'queued' AND ($1::bigint IS NULL OR org_id = $1)
