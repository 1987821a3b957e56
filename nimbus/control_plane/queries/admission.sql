-- A job is kept while limited_until is set and it is queued: its org's budget has not had room for it yet.

-- name: admit
-- The oldest. What GitHub has given up takes nobody's place.
UPDATE jobs SET limited_until = NULL
FROM repos
WHERE repos.repo_id = jobs.repo_id AND jobs.job_id IN (
    SELECT job_id FROM jobs
    WHERE org_id = $1 AND limited_until IS NOT NULL AND state = 'queued' AND refusal IS NULL
      AND queued_at > statement_timestamp() - interval '1 day'
    ORDER BY job_id LIMIT $2)
RETURNING jobs.job_id, jobs.repo_id, jobs.labels, repos.installation_id

-- name: tell
-- When the budget will have room for those that were not told yet, or were told too early: for the first after $2 seconds,
-- then for one each $3 seconds.
WITH line AS (
    SELECT job_id, limited_until, row_number() OVER (ORDER BY job_id) - 1 AS ahead FROM jobs
    WHERE org_id = $1 AND limited_until IS NOT NULL AND state = 'queued' AND refusal IS NULL
      AND queued_at > statement_timestamp() - interval '1 day'
)
UPDATE jobs
SET limited_until = statement_timestamp() + make_interval(secs => $2::double precision + $3::double precision * ahead)
FROM line WHERE line.job_id = jobs.job_id AND line.limited_until <= statement_timestamp()

-- name: lines
-- Each org's kept jobs, and in how many seconds the first one's time comes.
SELECT org_id, count(*) AS length,
       extract(epoch FROM min(limited_until) - statement_timestamp())::double precision AS due_s
FROM jobs
WHERE limited_until IS NOT NULL AND state = 'queued' AND refusal IS NULL
  AND queued_at > statement_timestamp() - interval '1 day'
GROUP BY org_id
ORDER BY org_id
