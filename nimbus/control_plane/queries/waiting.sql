-- name: waiting_facts
-- Of each listed job that waits: what may keep it. Jobs of one label set are paired with its machines in order of age,
-- those that have a host first: GitHub gives any of them to any.
WITH held AS MATERIALIZED (
    SELECT m.org_id, count(*) AS machines, sum((m.shape->>'cpus')::integer) AS cpus
    FROM machines m
    WHERE m.state IN ('leased', 'running')
      AND m.org_id IN (SELECT org_id FROM jobs WHERE job_id = ANY ($1::bigint[]))
    GROUP BY m.org_id
)
SELECT j.job_id, j.state, j.refusal, o.login, r.name AS repo,
       j.source = 'github' AND j.queued_at < statement_timestamp() - interval '1 day' AS given_up,
       p.kind AS problem, p.scope AS problem_scope, p.retry_at,
       o.max_machines, o.max_cpus, coalesce(held.machines, 0) AS held_machines, coalesce(held.cpus, 0) AS held_cpus,
       a.alias, a.max_machines AS alias_max, a.held AS alias_held,
       m.machine_id, m.state AS machine_state, m.kind AS machine_kind, m.arch, m.host_labels, m.shape,
       robbed.wasted, robbed.jobs AS robbed_jobs, line.ahead, line.length
FROM jobs j
JOIN orgs o ON o.org_id = j.org_id
LEFT JOIN repos r ON r.repo_id = j.repo_id
LEFT JOIN held ON held.org_id = j.org_id
LEFT JOIN LATERAL (
    SELECT c.* FROM machines c
    WHERE j.source = 'api' AND c.job_id = j.job_id AND c.state IN ('queued', 'leased', 'running')
    UNION ALL
    (SELECT c.* FROM machines c
     WHERE j.source = 'github' AND c.org_id = j.org_id AND (c.repo_id IS NULL OR c.repo_id = j.repo_id)
       AND c.kind = 'runner' AND c.labels = j.labels AND c.job_id IS NULL AND NOT c.cancel_requested
       AND c.state IN ('queued', 'leased', 'running')
     ORDER BY (c.state = 'queued'), c.machine_id
     OFFSET (SELECT count(*) FROM jobs e
             WHERE e.org_id = j.org_id AND e.labels = j.labels AND e.source = 'github' AND e.state = 'queued'
               AND e.repo_id IS NOT DISTINCT FROM j.repo_id AND e.refusal IS NULL AND e.job_id < j.job_id)
     LIMIT 1)
    LIMIT 1
) m ON true
LEFT JOIN LATERAL (
    -- only `read`: no machine waits for that
    SELECT f.kind, f.scope, CASE WHEN f.retry_at > clock_timestamp() THEN f.retry_at END AS retry_at FROM forge_problems f
    WHERE j.source = 'github' AND f.installation_id = coalesce(m.installation_id, r.installation_id)
      AND f.task <> 'read' AND f.scope IN ('', r.name)
    ORDER BY f.scope, f.since
    LIMIT 1
) p ON true
LEFT JOIN LATERAL (
    SELECT l.alias, l.max_machines,
           (SELECT count(*) FROM machines c
            WHERE c.org_id = l.org_id AND c.alias = l.alias AND c.state IN ('leased', 'running')) AS held
    FROM label_aliases l WHERE l.org_id = j.org_id AND l.alias = m.alias
) a ON true
LEFT JOIN LATERAL (
    SELECT (SELECT count(*) FROM machines c
            WHERE c.org_id = j.org_id AND (c.repo_id IS NULL OR c.repo_id = j.repo_id) AND c.labels = j.labels
              AND c.wasted_at > statement_timestamp() - interval '1 hour') AS wasted,
           (SELECT count(*) FROM jobs e
            WHERE e.org_id = j.org_id AND e.repo_id IS NOT DISTINCT FROM j.repo_id AND e.source = 'github'
              AND e.labels = j.labels AND e.refusal IS NULL AND e.queued_at > statement_timestamp() - interval '1 day'
              AND (e.state = 'queued' OR e.queued_at > statement_timestamp() - interval '1 hour')) AS jobs
    WHERE j.source = 'github' AND m.machine_id IS NULL
) robbed ON true
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE c.machine_id < m.machine_id) AS ahead, count(*) AS length
    FROM machines c WHERE c.org_id = j.org_id AND c.state = 'queued' AND m.state = 'queued'
) line ON true
WHERE j.job_id = ANY ($1::bigint[]) AND j.state IN ('waiting', 'queued')

-- name: known_hosts
SELECT DISTINCT arch, labels, cpus, mem_mib FROM agents
WHERE last_seen > clock_timestamp() - make_interval(secs => $1::double precision)
