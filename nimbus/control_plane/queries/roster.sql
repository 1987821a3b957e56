-- name: scopes
-- Where runners of ours may be registered: one list of GitHub's each.
SELECT m.org_id, m.repo_id, o.login, r.name AS repo, max(m.installation_id) AS installation_id,
       (SELECT i.installation_id FROM installations i
        WHERE i.org_id = m.org_id AND NOT i.removed ORDER BY i.suspended, i.installation_id DESC LIMIT 1) AS serving_id,
       bool_or(m.state IN ('leased', 'running')) AS live,
       extract(epoch FROM clock_timestamp())::double precision AS now_s
FROM machines m JOIN orgs o USING (org_id) LEFT JOIN repos r ON r.repo_id = m.repo_id
WHERE m.kind = 'runner' AND m.runner_name IS NOT NULL
  AND (m.state IN ('leased', 'running')
       OR m.finished_at > statement_timestamp() - make_interval(secs => $1::double precision))
GROUP BY m.org_id, m.repo_id, o.login, r.name
ORDER BY m.org_id, m.repo_id

-- name: machines
-- Live ones with a runner under their present lease. One whose job is completed has none any more, rightly; one that
-- registers by itself, so that its id is not known, has more time to appear.
SELECT m.machine_id, m.org_id, m.repo_id, m.labels, m.installation_id, m.runner_name, m.job_id,
       coalesce(j.state = 'in_progress', false) AS in_progress,
       m.registered_at < clock_timestamp() - make_interval(
           secs => CASE WHEN m.runner_id > 0 THEN $3::double precision ELSE $4::double precision END) AS ripe
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.org_id = $1 AND m.repo_id IS NOT DISTINCT FROM $2 AND m.kind = 'runner' AND m.state IN ('leased', 'running')
  AND NOT m.cancel_requested AND m.runner_fence = m.fence AND m.runner_id IS NOT NULL AND m.registered_at IS NOT NULL
  AND (j.state IS NULL OR j.state NOT IN ('completed', 'lost'))

-- name: deployment
SELECT deployment_id, extract(epoch FROM clock_timestamp())::double precision AS now_s FROM deployment

-- name: fates
-- Of each name that has a machine: whether that may be running under it, else for how long it is over.
SELECT m.runner_name AS name, m.state IN ('leased', 'running') AND m.runner_fence = m.fence AS live,
       coalesce(extract(epoch FROM clock_timestamp() - m.finished_at), 0)::double precision AS ended_s
FROM machines m
WHERE m.runner_name = ANY ($1::text[])
