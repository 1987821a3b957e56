-- name: keep_org
-- Also the lock under which one org's demand is counted: its row stays locked until the commit.
INSERT INTO orgs (forge, forge_id, login) VALUES ('github', $1, $2)
ON CONFLICT (forge, forge_id) DO UPDATE SET login = excluded.login
RETURNING org_id

-- name: lock_org
SELECT org_id FROM orgs WHERE org_id = $1 FOR NO KEY UPDATE

-- name: keep_repo
INSERT INTO repos (org_id, forge_id, name, private) VALUES ($1, $2, $3, $4)
ON CONFLICT (org_id, forge_id) DO UPDATE SET name = excluded.name, private = excluded.private
RETURNING repo_id

-- name: lock_job
SELECT job_id, org_id, state FROM jobs WHERE source = 'github' AND forge_job_id = $1 FOR UPDATE

-- name: insert_job
INSERT INTO jobs (org_id, repo_id, source, forge_job_id, run_id, run_attempt, name, workflow_name, labels, html_url,
                  state, conclusion, runner_name, queued_at, started_at, completed_at, learned_by)
VALUES ($1, $2, 'github', $3, $4, $5, $6, $7, $8, $9,
        $10, $11, $12, coalesce($13, clock_timestamp()), $14, $15, 'webhook')
RETURNING job_id

-- name: update_job
-- What was not known is filled in; only the state is decided by rank, before this.
UPDATE jobs
SET state = $2,
    conclusion = coalesce($3, conclusion),
    runner_name = coalesce($4, runner_name),
    queued_at = least(queued_at, $5),
    started_at = coalesce(started_at, $6),
    completed_at = coalesce($7, completed_at)
WHERE job_id = $1

-- name: link_machine
-- The runner's name and fence are those of the lease that it was registered under, and stay until the next lease mints its own: only the newest lease's
-- runner counts, or a late event would bind the job of a dead VM to the machine's next holder. A machine that is queued again runs nothing; one that has ended
-- may still be linked, for its output.
UPDATE machines
SET job_id = $3
WHERE org_id = $1 AND runner_name = $2 AND runner_fence = fence AND kind = 'runner' AND job_id IS NULL AND state <> 'queued'
RETURNING machine_id, repo_id, labels

-- name: count_demand
-- GitHub gives up a job that was queued for a day.
SELECT (SELECT count(*) FROM jobs
        WHERE org_id = $1 AND ($2::bigint IS NULL OR repo_id = $2) AND source = 'github' AND state = 'queued'
          AND labels = $3::text[] AND queued_at > clock_timestamp() - interval '1 day') AS wanted,
       (SELECT count(*) FROM machines
        WHERE org_id = $1 AND repo_id IS NOT DISTINCT FROM $2 AND kind = 'runner' AND labels = $3::text[]
          AND state IN ('queued', 'leased', 'running') AND job_id IS NULL AND NOT cancel_requested) AS present

-- name: surplus_unregistered
-- Those that nobody has begun go first, then those that GitHub does not know yet: neither can be running a job.
SELECT machine_id FROM machines
WHERE org_id = $1 AND repo_id IS NOT DISTINCT FROM $2 AND kind = 'runner' AND labels = $3::text[]
  AND state IN ('queued', 'leased', 'running') AND job_id IS NULL AND NOT cancel_requested AND runner_id IS NULL
ORDER BY (state = 'queued') DESC, machine_id DESC
LIMIT $4
FOR UPDATE

-- name: unmet_demand
-- Label sets that wait, but for those whose last machine ended without a job a moment ago: no hot loop.
SELECT DISTINCT j.org_id, j.repo_id, j.labels
FROM jobs j
WHERE j.source = 'github' AND j.state = 'queued' AND j.queued_at > clock_timestamp() - interval '1 day'
  AND NOT EXISTS (
      SELECT FROM machines m
      WHERE m.org_id = j.org_id AND m.labels = j.labels AND m.kind = 'runner' AND m.job_id IS NULL
        AND m.finished_at > clock_timestamp() - make_interval(secs => $1::double precision))

-- name: known_installation
SELECT installation_id FROM machines
WHERE org_id = $1 AND installation_id IS NOT NULL
ORDER BY machine_id DESC LIMIT 1
