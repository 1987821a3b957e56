-- Ages are compared with statement_timestamp(): of a clock that moves on within a statement no index can make use.

-- name: lock_org
-- Under it one org's demand is counted; keep_account of installations.sql locks the same row.
SELECT org_id FROM orgs WHERE org_id = $1 FOR NO KEY UPDATE

-- name: keep_repo
-- An event of one of its jobs is what makes a repository active, and names the installation that serves it, unless that
-- is gone: events come late.
INSERT INTO repos (org_id, forge_id, name, private, installation_id, active_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp())
ON CONFLICT (org_id, forge_id) DO UPDATE
SET name = excluded.name, private = excluded.private, active_at = excluded.active_at,
    installation_id = coalesce(
        (SELECT excluded.installation_id
         WHERE NOT EXISTS (SELECT FROM installations i WHERE i.installation_id = excluded.installation_id AND i.removed)),
        repos.installation_id)
RETURNING repo_id

-- name: is_known
-- A job that is ours though its labels alone do not say so: by an alias of its org, because we know it already, or
-- because one of this org's runners took it.
-- A repository's own runner serves no other repository: there, whoever may register one can give it any name.
-- Of many events at once; each one's labels come as lines of one text. Their places in the arrays, from 1.
SELECT told.place
FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[]) WITH ORDINALITY
     AS told (forge_job_id, owner_id, labels, runner_name, forge_repo_id, place)
WHERE EXISTS (SELECT FROM jobs WHERE source = 'github' AND jobs.forge_job_id = told.forge_job_id)
   OR EXISTS (SELECT FROM label_aliases JOIN orgs USING (org_id)
              WHERE forge = 'github' AND forge_id = told.owner_id
                AND alias = ANY (string_to_array(told.labels, E'\n')))
   OR EXISTS (SELECT FROM machines m JOIN orgs o USING (org_id) LEFT JOIN repos r ON r.repo_id = m.repo_id
              WHERE o.forge = 'github' AND o.forge_id = told.owner_id AND m.runner_name = told.runner_name
                AND (m.repo_id IS NULL OR r.forge_id = told.forge_repo_id))

-- name: lock_job
SELECT job_id, org_id, state, refusal, limited_until FROM jobs WHERE source = 'github' AND forge_job_id = $1 FOR UPDATE

-- name: insert_job
-- One that has not begun is kept until its org's budget has room for it.
INSERT INTO jobs (org_id, repo_id, source, forge_job_id, run_id, run_attempt, name, workflow_name, labels, html_url,
                  state, conclusion, runner_name, queued_at, started_at, completed_at, learned_by, refusal, told_by,
                  limited_until)
VALUES ($1, $2, 'github', $3, $4, $5, $6, $7, $8, $9,
        $10, $11, $12, $13, $14, $15, $16, $17, 'github:' || $16,
        CASE WHEN $10 IN ('waiting', 'queued') THEN clock_timestamp() END)
RETURNING job_id

-- name: update_job
-- What was not known is filled in; only the state is decided by rank, before this. $8: the repair that moved it on.
-- One that leaves a gate is queued from then on, at $9: it may have stood there for days.
UPDATE jobs
SET state = $2,
    conclusion = coalesce($3, conclusion),
    runner_name = coalesce($4, runner_name),
    queued_at = CASE state WHEN 'queued' THEN queued_at
                           WHEN 'waiting' THEN CASE $2 WHEN 'queued' THEN $9::timestamptz ELSE queued_at END
                           ELSE least(queued_at, $5) END,
    started_at = coalesce(started_at, $6),
    completed_at = coalesce($7, completed_at),
    repaired_by = coalesce($8, repaired_by),
    told_by = 'github:' || $10::text,
    limited_until = CASE WHEN $2 IN ('waiting', 'queued') THEN limited_until END
WHERE job_id = $1

-- name: link_machine
-- The runner's name and fence are those of the lease that it was registered under, and stay until the next lease mints
-- its own: only the newest lease's runner counts, or a late event would bind the job of a dead VM to the machine's next
-- holder. A machine that is queued again runs nothing; one that has ended may still be linked, for its output.
-- Taken by a job of other labels, it is lost to those that it was made for.
UPDATE machines
SET job_id = $3, wasted_at = CASE WHEN labels = $4::text[] THEN wasted_at ELSE clock_timestamp() END
WHERE org_id = $1 AND runner_name = $2 AND runner_fence = fence AND kind = 'runner' AND job_id IS NULL
  AND state <> 'queued' AND (repo_id IS NULL OR repo_id = $5)
RETURNING machine_id, repo_id, labels

-- name: take_back
UPDATE jobs SET limited_until = clock_timestamp()
WHERE job_id = (
    SELECT job_id FROM jobs
    WHERE org_id = $1 AND ($2::bigint IS NULL OR repo_id = $2) AND labels = $3::text[] AND source = 'github'
      AND state = 'queued' AND refusal IS NULL AND limited_until IS NULL
    ORDER BY job_id DESC LIMIT 1)
RETURNING true

-- name: count_demand
-- GitHub gives up a job that was queued for a day; one that is refused, or not admitted yet, asks for nothing.
-- `untold`: registered machines
-- that ended well and of whose job GitHub has told nothing yet. It is one of those that seem to be queued; a poll of the
-- repository since then, or the time in which one was due, has shown that it is not.
SELECT (SELECT count(*) FROM jobs
        WHERE org_id = $1 AND ($2::bigint IS NULL OR repo_id = $2) AND source = 'github' AND state = 'queued'
          AND labels = $3::text[] AND refusal IS NULL AND limited_until IS NULL
          AND queued_at > statement_timestamp() - interval '1 day') AS wanted,
       (SELECT count(*) FROM machines
        WHERE org_id = $1 AND repo_id IS NOT DISTINCT FROM $2 AND kind = 'runner' AND labels = $3::text[]
          AND state IN ('queued', 'leased', 'running') AND job_id IS NULL AND NOT cancel_requested) AS present,
       (SELECT count(*) FROM machines
        WHERE org_id = $1 AND repo_id IS NOT DISTINCT FROM $2 AND labels = $3::text[]
          AND wasted_at > statement_timestamp() - interval '1 hour') AS wasted,
       (SELECT count(*) FROM machines m LEFT JOIN repos r ON r.repo_id = m.repo_id
        WHERE m.org_id = $1 AND m.repo_id IS NOT DISTINCT FROM $2 AND m.kind = 'runner' AND m.labels = $3::text[]
          AND m.state = 'done' AND m.job_id IS NULL AND m.registered_at IS NOT NULL AND NOT m.cancel_requested
          AND m.wasted_at IS NULL AND m.finished_at > coalesce(r.polled_at, '-infinity')
          AND m.finished_at > statement_timestamp() - make_interval(secs => $4::double precision)) AS untold

-- name: jobs_of_hour
-- What the wasted runners of the last hour are measured by: its jobs that still wait, and those that came since.
SELECT count(*) FROM jobs
WHERE org_id = $1 AND ($2::bigint IS NULL OR repo_id = $2) AND source = 'github' AND labels = $3::text[]
  AND refusal IS NULL AND queued_at > statement_timestamp() - interval '1 day'
  AND (state = 'queued' OR queued_at > statement_timestamp() - interval '1 hour')

-- name: surplus_unregistered
-- Those that nobody has begun go first, then those that GitHub does not know yet: neither can be running a job.
SELECT machine_id FROM machines
WHERE org_id = $1 AND repo_id IS NOT DISTINCT FROM $2 AND kind = 'runner' AND labels = $3::text[]
  AND state IN ('queued', 'leased', 'running') AND job_id IS NULL AND NOT cancel_requested AND runner_id IS NULL
ORDER BY (state = 'queued') DESC, machine_id DESC
LIMIT $4
FOR UPDATE

-- name: waiting_orgs
SELECT DISTINCT org_id FROM jobs WHERE source = 'github' AND state = 'queued' ORDER BY org_id

-- name: waiting_sets
-- An org's label sets with queued jobs. `rests`: its last machine ended without a job a moment ago, so that another
-- one is not made in a hot loop.
SELECT j.repo_id, j.labels,
       EXISTS (SELECT FROM machines m
               WHERE m.org_id = $1 AND m.labels = j.labels AND m.kind = 'runner' AND m.job_id IS NULL
                 AND (m.repo_id IS NULL OR m.repo_id = j.repo_id) AND m.finished_at > statement_timestamp() - make_interval(secs => $2::double precision)) AS rests
FROM (SELECT DISTINCT repo_id, labels FROM jobs
      WHERE org_id = $1 AND source = 'github' AND state = 'queued'
        AND queued_at > statement_timestamp() - interval '1 day') j

-- name: judge_jobs
UPDATE jobs SET refusal = $3
WHERE org_id = $1 AND labels = $2::text[] AND source = 'github' AND state = 'queued' AND refusal IS DISTINCT FROM $3

-- name: refit_machines
-- What nobody has begun gets what its labels mean now.
UPDATE machines
SET shape = $3, arch = $4, image = $5, host_labels = $6, alias = $7, priority = $8,
    turn_at = created_at - make_interval(secs => $9::double precision)
WHERE org_id = $1 AND labels = $2::text[] AND kind = 'runner' AND state = 'queued'
  AND (shape, arch, image, host_labels, alias, priority)
      IS DISTINCT FROM ($3::jsonb, $4::text, $5::text, $6::text[], $7::text, $8::smallint)
