-- name: find_org
-- By our id or by its name, which GitHub compares without case; $2 is the caller's org, null for all. A name that moved
-- on to another account means the newer one.
SELECT org_id, forge, login, max_machines, max_cpus, runner_group_id, weight
FROM orgs
WHERE (org_id::text = $1 OR lower(login) = lower($1)) AND ($2::bigint IS NULL OR org_id = $2)
ORDER BY (org_id::text = $1) DESC, org_id DESC
LIMIT 1

-- name: list_orgs
SELECT org_id, forge, login, max_machines, max_cpus, runner_group_id, weight
FROM orgs
WHERE $1::bigint IS NULL OR org_id = $1
ORDER BY lower(login), org_id
LIMIT 1000

-- name: limit_org
UPDATE orgs SET max_machines = $2, max_cpus = $3, runner_group_id = $4, weight = $5 WHERE org_id = $1

-- name: count_held
SELECT org_id, count(*) FILTER (WHERE state <> 'queued') AS machines,
       coalesce(sum((shape->>'cpus')::integer) FILTER (WHERE state <> 'queued'), 0) AS cpus,
       count(*) FILTER (WHERE state = 'queued') AS queued
FROM machines
WHERE org_id = ANY ($1::bigint[]) AND state IN ('queued', 'leased', 'running')
GROUP BY org_id

-- name: installations
SELECT org_id, installation_id, suspended FROM installations
WHERE org_id = ANY ($1::bigint[]) AND NOT removed
ORDER BY installation_id

-- name: problems
SELECT i.org_id, p.installation_id, p.scope, p.task, p.kind, p.said, p.since,
       CASE WHEN p.retry_at > clock_timestamp() THEN p.retry_at END AS retry_at
FROM forge_problems p JOIN installations i USING (installation_id)
WHERE i.org_id = ANY ($1::bigint[])
ORDER BY p.since
