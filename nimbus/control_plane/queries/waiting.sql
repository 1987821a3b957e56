-- name: waiting_facts
-- Of each listed job that waits: what may keep it. Jobs of one label set are paired with its machines in order of age,
-- those that have a host first: GitHub gives any of them to any. Whole queues are numbered once, not for each job.
WITH listed AS MATERIALIZED (
    SELECT * FROM jobs WHERE job_id = ANY ($1::bigint[]) AND state IN ('waiting', 'queued')
), sets AS MATERIALIZED (
    SELECT row_number() OVER () AS set_id, *
    FROM (SELECT DISTINCT org_id, repo_id, labels FROM listed WHERE source = 'github' AND state = 'queued') each_set
), places AS MATERIALIZED (
    SELECT s.set_id, j.job_id, row_number() OVER (PARTITION BY s.set_id ORDER BY j.job_id) AS place
    FROM jobs j JOIN sets s USING (org_id, labels)
    WHERE j.repo_id IS NOT DISTINCT FROM s.repo_id AND j.source = 'github' AND j.state = 'queued' AND j.refusal IS NULL
      AND j.limited_until IS NULL
), runners AS MATERIALIZED (
    SELECT s.set_id, row_number() OVER (PARTITION BY s.set_id ORDER BY (m.state = 'queued'), m.machine_id) AS place, m.*
    FROM machines m JOIN sets s USING (org_id, labels)
    WHERE (m.repo_id IS NULL OR m.repo_id = s.repo_id) AND m.kind = 'runner' AND m.job_id IS NULL
      AND NOT m.cancel_requested AND m.state IN ('queued', 'leased', 'running')
), standing AS MATERIALIZED (
    SELECT p.job_id, r.machine_id, r.installation_id, r.state, r.kind, r.arch, r.host_labels, r.shape, r.alias
    FROM places p JOIN runners r USING (set_id, place)
    UNION ALL
    SELECT l.job_id, m.machine_id, m.installation_id, m.state, m.kind, m.arch, m.host_labels, m.shape, m.alias
    FROM listed l JOIN machines m USING (job_id)
    WHERE l.source = 'api' AND m.state IN ('queued', 'leased', 'running')
), line AS MATERIALIZED (
    SELECT machine_id, place, length, ahead, held_back, reserved_for FROM queue_order
    WHERE machine_id IN (SELECT machine_id FROM standing WHERE state = 'queued')
), held AS MATERIALIZED (
    SELECT org_id, count(*) AS machines, sum((shape->>'cpus')::integer) AS cpus
    FROM machines
    WHERE state IN ('leased', 'running') AND org_id IN (SELECT org_id FROM listed)
    GROUP BY org_id
), robbed AS MATERIALIZED (
    SELECT s.org_id, s.repo_id, s.labels, w.wasted,
           (SELECT count(*) FROM jobs e
            WHERE e.org_id = s.org_id AND e.repo_id IS NOT DISTINCT FROM s.repo_id AND e.source = 'github'
              AND e.labels = s.labels AND e.refusal IS NULL AND e.queued_at > statement_timestamp() - interval '1 day'
              AND (e.state = 'queued' OR e.queued_at > statement_timestamp() - interval '1 hour')) AS jobs
    FROM sets s
    CROSS JOIN LATERAL (
        SELECT count(*) AS wasted FROM machines m
        WHERE m.org_id = s.org_id AND (m.repo_id IS NULL OR m.repo_id = s.repo_id) AND m.labels = s.labels
          AND m.wasted_at > statement_timestamp() - interval '1 hour'
    ) w
    WHERE w.wasted > 0
)
SELECT j.job_id, j.org_id, j.state, j.refusal, o.login,
       CASE WHEN j.limited_until > statement_timestamp() THEN j.limited_until END AS limited_until,
       (SELECT w.grants_paused_until FROM database_watch w
        WHERE w.grants_paused_until > statement_timestamp()) AS paused_until,
       j.source = 'github' AND j.queued_at < statement_timestamp() - interval '1 day' AS given_up,
       p.kind AS problem, p.scope AS problem_scope, p.retry_at,
       coalesce(m.kind = 'runner' AND m.installation_id IS NULL AND NOT EXISTS (
           SELECT FROM installations i WHERE i.org_id = j.org_id AND NOT i.removed), false) AS unserved,
       o.max_machines, o.max_cpus, coalesce(held.machines, 0) AS held_machines, coalesce(held.cpus, 0) AS held_cpus,
       a.alias, a.max_machines AS alias_max, a.held AS alias_held,
       m.state AS machine_state, m.kind AS machine_kind, m.arch, m.host_labels, m.shape,
       robbed.wasted, robbed.jobs AS robbed_jobs,
       line.place, line.length, line.ahead, line.held_back, line.reserved_for
FROM listed j
JOIN orgs o USING (org_id)
LEFT JOIN repos r ON r.repo_id = j.repo_id
LEFT JOIN held ON held.org_id = j.org_id
LEFT JOIN standing m ON m.job_id = j.job_id
LEFT JOIN line ON line.machine_id = m.machine_id
LEFT JOIN robbed ON robbed.org_id = j.org_id AND robbed.repo_id IS NOT DISTINCT FROM j.repo_id
                AND robbed.labels = j.labels AND j.source = 'github'
LEFT JOIN LATERAL (
    -- only `read`: no machine waits for that
    SELECT f.kind, f.scope, CASE WHEN f.retry_at > clock_timestamp() THEN f.retry_at END AS retry_at
    FROM forge_problems f
    WHERE j.source = 'github' AND f.installation_id = coalesce(m.installation_id, r.installation_id)
      AND f.task <> 'read' AND f.scope IN ('', r.name)
    ORDER BY f.scope, f.since
    LIMIT 1
) p ON true
LEFT JOIN LATERAL (
    SELECT l.alias, l.max_machines,
           (SELECT count(*) FROM machines c
            WHERE c.org_id = l.org_id AND c.alias = l.alias AND c.state IN ('leased', 'running')) AS held
    FROM label_aliases l WHERE l.org_id = j.org_id AND l.alias = m.alias AND l.max_machines IS NOT NULL
) a ON true

-- name: known_hosts
-- `held`: granted nothing, because it is wanted so or drains by itself.
SELECT DISTINCT arch, labels, cpus, mem_mib,
       wanted <> 'working' OR coalesce(doing IN ('draining', 'drained', 'leaving'), false) AS held,
       barred IS NOT NULL AS barred
FROM agents
WHERE last_seen > clock_timestamp() - make_interval(secs => $1::double precision)

-- name: pace
-- What each known host does: its room as it last told, what it holds, and what ended there lately, in all and of org $2.
-- `span_s`: the time that this was counted over; shorter than $3 where so much ended that the newest are enough.
WITH newest AS MATERIALIZED (
    SELECT event_id, machine_id, fence, agent_id, at FROM machine_events
    WHERE state_from IN ('leased', 'running') AND state_to NOT IN ('leased', 'running')
    ORDER BY event_id DESC
    LIMIT $4
), recent AS MATERIALIZED (
    SELECT e.agent_id, e.at, extract(epoch FROM e.at - g.at)::double precision AS length_s, m.org_id
    FROM newest e
    JOIN machine_events g ON g.machine_id = e.machine_id AND g.fence = e.fence AND g.event = 'lease'
    JOIN machines m ON m.machine_id = e.machine_id
    WHERE e.at > statement_timestamp() - make_interval(secs => $3::double precision)
), ended AS (
    SELECT agent_id, count(*) AS ends, sum(length_s) AS lengths_s,
           count(*) FILTER (WHERE org_id = $2) AS org_ends,
           coalesce(sum(length_s) FILTER (WHERE org_id = $2), 0) AS org_lengths_s
    FROM recent GROUP BY agent_id
), holding AS (
    SELECT agent_id, count(*) AS holds, count(*) FILTER (WHERE org_id = $2) AS org_holds
    FROM machines WHERE state IN ('leased', 'running') GROUP BY agent_id
)
SELECT a.arch, a.labels, a.cpus, a.mem_mib,
       a.wanted <> 'working' OR coalesce(a.doing IN ('draining', 'drained', 'leaving'), false) AS held,
       a.barred IS NOT NULL AS barred, a.free_cpus, a.free_mem_mib, a.free_slots,
       coalesce(h.holds, 0) AS holds, coalesce(h.org_holds, 0) AS org_holds,
       coalesce(e.ends, 0) AS ends, coalesce(e.lengths_s, 0)::double precision AS lengths_s,
       coalesce(e.org_ends, 0) AS org_ends, coalesce(e.org_lengths_s, 0)::double precision AS org_lengths_s,
       least($3, CASE WHEN (SELECT count(*) FROM newest) = $4
                      THEN (SELECT extract(epoch FROM statement_timestamp() - min(at)) FROM newest) END,
             $3)::double precision AS span_s
FROM agents a
LEFT JOIN ended e USING (agent_id)
LEFT JOIN holding h USING (agent_id)
WHERE a.last_seen > clock_timestamp() - make_interval(secs => $1::double precision)
