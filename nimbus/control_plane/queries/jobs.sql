-- name: look_up
-- The org that submits, the local one where none is named; whether it used this key before; and for how long others of
-- its jobs are kept that came first (admission.sql).
SELECT o.org_id,
       EXISTS (SELECT FROM jobs WHERE jobs.org_id = o.org_id AND idempotency_key = $2) AS known,
       (SELECT extract(epoch FROM max(limited_until) - statement_timestamp())::double precision FROM jobs
        WHERE jobs.org_id = o.org_id AND limited_until > statement_timestamp() AND state = 'queued'
          AND refusal IS NULL AND queued_at > statement_timestamp() - interval '1 day') AS line_s
FROM orgs o
WHERE o.org_id = $1 OR $1::bigint IS NULL AND o.forge = 'local' AND o.forge_id = 0

-- name: lock_keys
-- Submissions with a key of one org wait for each other, so that a key is looked up once.
SELECT pg_advisory_xact_lock(hashtextextended('nimbus.jobs', $1))

-- name: job_by_key
SELECT job_id, state, command, priority FROM jobs WHERE org_id = $1 AND idempotency_key = $2

-- name: machine_of_job
SELECT machine_id, image, shape, arch FROM machines WHERE job_id = $1 ORDER BY machine_id DESC LIMIT 1

-- name: insert_job
INSERT INTO jobs (org_id, source, name, state, queued_at, learned_by, command, idempotency_key, priority, told_by)
VALUES ($1, 'api', $2, 'queued', clock_timestamp(), 'api', $3, $4, $5, $6)
RETURNING job_id

-- name: find_job
-- By our id, else by the forge's. $2 is the caller's org, null for all. The command is left out: it may hold secrets.
SELECT job_id, org_id, repo_id, source, forge_job_id, run_id, run_attempt, name, workflow_name, labels, priority, state,
       conclusion, runner_name, html_url, queued_at, started_at, completed_at, cause, learned_by, repaired_by
FROM jobs
WHERE (job_id = $1 OR (source = 'github' AND forge_job_id = $1)) AND ($2::bigint IS NULL OR org_id = $2)
ORDER BY (job_id = $1) DESC
LIMIT 1

-- name: plan_anew
SET LOCAL plan_cache_mode = force_custom_plan

-- name: org_by_name
-- As orgs.sql finds one. $2 is the caller's org, null for all.
SELECT org_id AS id FROM orgs
WHERE (org_id::text = $1 OR lower(login) = lower($1)) AND ($2::bigint IS NULL OR org_id = $2)
ORDER BY (org_id::text = $1) DESC, org_id DESC
LIMIT 1

-- name: repo_by_name
-- Our id of it, or owner/name; a name that was used twice means the newer one.
SELECT repo_id AS id FROM repos JOIN orgs USING (org_id)
WHERE (repo_id::text = $1 OR lower(login || '/' || name) = lower($1)) AND ($2::bigint IS NULL OR org_id = $2)
ORDER BY (repo_id::text = $1) DESC, repo_id DESC
LIMIT 1

-- name: list_jobs
-- What is not asked for falls away when it is planned. A job of our API was learned by it, and GitHub's alone have
-- labels: said here so that the indexes of what is rare serve. $13: what is asked for is few by its nature, so it is
-- sorted, and never looked for by walking back through all that has ended.
SELECT job_id, org_id, repo_id, source, forge_job_id, run_id, run_attempt, name, workflow_name, labels, priority, state,
       conclusion, runner_name, html_url, queued_at, started_at, completed_at, cause, learned_by, repaired_by
FROM jobs
WHERE ($1::bigint IS NULL OR org_id = $1)
  AND ($2::bigint IS NULL OR repo_id = $2)
  AND ($3::text[] IS NULL OR state = ANY ($3))
  AND ($4::text IS NULL OR (source = $4 AND ($4 <> 'api' OR learned_by = 'api')))
  AND ($5::text IS NULL OR (source = 'github' AND labels @> ARRAY[$5]))
  AND ($6::text IS NULL OR left(name, 64) LIKE $6)
  AND ($7::text IS NULL OR conclusion = $7)
  AND ($8::text IS NULL OR learned_by = $8)
  AND ($9::timestamptz IS NULL OR queued_at >= $9)
  AND ($10::timestamptz IS NULL OR queued_at < $10)
  AND ($11::bigint IS NULL OR job_id < $11)
ORDER BY CASE WHEN $13 THEN -job_id END, job_id DESC
LIMIT $12

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

-- name: jobs_with_output
SELECT job_id, org_id, repo_id, state FROM jobs WHERE job_id = ANY($1::bigint[])

-- name: leases_of_jobs
-- The same as leases_of_job for many jobs at once.
SELECT m.job_id, e.machine_id, e.fence
FROM machine_events e JOIN machines m USING (machine_id)
WHERE m.job_id = ANY($1::bigint[]) AND e.event = 'lease'
ORDER BY e.event_id

-- name: events_of_job
-- Steps of the job and of its machines, merged. What demand did to a machine has no teller: it is the control plane.
SELECT * FROM (
    SELECT at, 'job' AS about, event_id, NULL::bigint AS machine_id, NULL::bigint AS fence, NULL AS event,
           state_from, state_to, conclusion, cause, told_by, NULL AS agent_id
    FROM job_events WHERE job_id = $1
    UNION ALL
    SELECT e.at, 'machine', e.event_id, e.machine_id, e.fence, e.event, e.state_from, e.state_to, NULL, e.cause,
           coalesce(e.told_by, 'demand'), e.agent_id
    FROM machine_events e JOIN machines m USING (machine_id) WHERE m.job_id = $1
) steps
WHERE (at, about, event_id) > ($2::timestamptz, $3::text, $4::bigint)
ORDER BY at, about, event_id
LIMIT $5

-- name: cancel_job
UPDATE jobs SET state = 'completed', conclusion = 'cancelled', completed_at = clock_timestamp(), cause = $2, told_by = $3
WHERE job_id = $1 AND state IN ('waiting', 'queued')

-- name: count_machines
SELECT state, count(*) AS machines FROM machines WHERE $1::bigint IS NULL OR org_id = $1 GROUP BY state

-- name: count_jobs
SELECT state, count(*) AS jobs FROM jobs WHERE $1::bigint IS NULL OR org_id = $1 GROUP BY state

-- name: oldest_queued
SELECT extract(epoch FROM clock_timestamp() - min(created_at))::double precision
FROM machines WHERE state = 'queued' AND ($1::bigint IS NULL OR org_id = $1)
