-- name: installations
SELECT i.installation_id, count(*) AS repos
FROM installations i JOIN repos r USING (installation_id)
WHERE NOT i.suspended AND NOT i.removed AND NOT r.archived
GROUP BY i.installation_id ORDER BY min(r.polled_at) NULLS FIRST

-- name: due
-- Active is where something was told or pushed lately, or where a job of ours is open: those go first. Then those that
-- were never looked at, and of these the ones that were active last.
SELECT * FROM (
    SELECT r.repo_id, r.forge_id, r.name AS repo, r.private, o.login, o.forge_id AS owner_id, r.polled_at, r.active_at,
           coalesce(r.active_at > clock_timestamp() - make_interval(secs => $4::double precision), false)
           OR EXISTS (SELECT FROM jobs j WHERE j.repo_id = r.repo_id AND j.state IN ('waiting', 'queued', 'in_progress')
                      AND j.source = 'github') AS active
    FROM repos r JOIN orgs o USING (org_id)
    WHERE r.installation_id = $1 AND NOT r.archived
) reached
WHERE polled_at IS NULL
   OR polled_at > clock_timestamp()  -- it was set back
   OR polled_at <= clock_timestamp()
                   - make_interval(secs => CASE WHEN active THEN $2::double precision ELSE $3::double precision END)
ORDER BY active DESC, polled_at NULLS FIRST, active_at DESC NULLS LAST
LIMIT $5

-- name: known
SELECT forge_job_id, state, runner_name FROM jobs WHERE source = 'github' AND forge_job_id = ANY ($1::bigint[])

-- name: unshown
-- Our open jobs that the runs' lists did not show. One behind a gate may stay there for weeks: it is asked about as
-- seldom as an idle repository.
SELECT forge_job_id, coalesce(run_id, 0) AS run_id, coalesce(run_attempt, 1) AS attempt, name, labels
FROM jobs
WHERE repo_id = $1 AND source = 'github' AND forge_job_id IS NOT NULL AND NOT forge_job_id = ANY ($2::bigint[])
  AND (state IN ('queued', 'in_progress')
       OR (state = 'waiting'
           AND coalesce(checked_at, '-infinity') <= clock_timestamp() - make_interval(secs => $3::double precision)))
ORDER BY checked_at NULLS FIRST, job_id

-- name: unreachable
-- GitHub ends a job that was queued for a day, and any run after 35: where it cannot be asked any more, that is known
-- without asking.
SELECT j.forge_job_id, coalesce(j.run_id, 0) AS run_id, coalesce(j.run_attempt, 1) AS attempt, j.name, j.labels,
       r.forge_id, r.name AS repo, r.private, o.login, o.forge_id AS owner_id
FROM jobs j JOIN repos r USING (repo_id) JOIN orgs o ON o.org_id = r.org_id
     LEFT JOIN installations i ON i.installation_id = r.installation_id
WHERE j.source = 'github' AND j.forge_job_id IS NOT NULL AND j.state IN ('waiting', 'queued', 'in_progress')
  AND j.queued_at < clock_timestamp() - CASE j.state WHEN 'queued' THEN interval '25 hours' ELSE interval '35 days' END
  AND (r.archived OR i.installation_id IS NULL OR i.removed OR i.suspended
       OR EXISTS (SELECT FROM forge_problems p  -- refused for a day: no permission, Actions disabled
                  WHERE p.installation_id = r.installation_id AND p.scope IN ('', r.name)
                    AND p.since < clock_timestamp() - interval '1 day'))
ORDER BY j.job_id
LIMIT $1

-- name: note_checked
UPDATE jobs SET checked_at = clock_timestamp() WHERE source = 'github' AND forge_job_id = ANY ($1::bigint[])

-- name: note_polled
UPDATE repos SET polled_at = clock_timestamp() WHERE repo_id = $1

-- name: now
SELECT clock_timestamp()
