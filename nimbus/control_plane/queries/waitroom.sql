-- name: find_unoffered
-- Queued requests that nobody is woken for and some waiting agent has room for ($1, its largest offers), of each org in
-- turn, those first that nobody was woken for yet. What the grant would refuse now (leases.sql) is left out, so that a
-- long queue of it wakes nobody and hides nothing. $2: at most so many. $3: may be offered before their time.
-- Always one row at least: whether anything is queued at all, and who is granted nothing
-- (one that makes room for a large machine looks by itself whenever it has more room).
WITH RECURSIVE offers AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb)
        AS o (arch text, labels text[], cpus integer, mem_mib integer, disk_mib bigint)
), queues AS (
    (SELECT org_id FROM machines WHERE state = 'queued' ORDER BY org_id LIMIT 1)
    UNION ALL
    SELECT (SELECT m.org_id FROM machines m WHERE m.state = 'queued' AND m.org_id > q.org_id ORDER BY m.org_id LIMIT 1)
    FROM queues q WHERE q.org_id IS NOT NULL
), room AS MATERIALIZED (
    SELECT o.org_id, o.max_machines - h.machines AS machines, o.max_cpus - h.cpus AS cpus
    FROM queues JOIN orgs o USING (org_id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS machines, coalesce(sum((m.shape->>'cpus')::integer), 0) AS cpus
        FROM machines m
        WHERE (o.max_machines IS NOT NULL OR o.max_cpus IS NOT NULL)
          AND m.org_id = o.org_id AND m.state IN ('leased', 'running')
    ) h
), full_alias AS MATERIALIZED (
    SELECT a.org_id, a.alias
    FROM label_aliases a JOIN room USING (org_id)
    WHERE a.max_machines IS NOT NULL AND a.max_machines <= (
        SELECT count(*) FROM machines m
        WHERE m.org_id = a.org_id AND m.alias = a.alias AND m.state IN ('leased', 'running'))
), blocked AS MATERIALIZED (
    SELECT installation_id, scope FROM forge_problems WHERE task <> 'read' AND retry_at > clock_timestamp()
), found AS (
    SELECT next.*
    FROM room
    CROSS JOIN LATERAL (
        SELECT m.machine_id, m.kind, m.arch, m.host_labels, m.shape,
               extract(epoch FROM clock_timestamp() - free.since)::double precision AS overdue_s,
               row_number() OVER (ORDER BY free.since NULLS FIRST, m.machine_id) AS place
        FROM machines m
        CROSS JOIN LATERAL (
            SELECT CASE WHEN NOT m.machine_id = ANY ($3::bigint[]) THEN m.offered_until END AS since
        ) free
        WHERE m.org_id = room.org_id AND m.state = 'queued' AND NOT m.cancel_requested
          AND (free.since IS NULL OR free.since <= clock_timestamp())
          AND (room.cpus IS NULL OR (m.shape->>'cpus')::integer <= room.cpus)
          AND EXISTS (
              SELECT FROM offers o
              WHERE o.arch = m.arch
                AND (m.shape->>'cpus')::integer <= o.cpus
                AND (m.shape->>'mem_mib')::integer <= o.mem_mib
                AND (o.disk_mib IS NULL OR (m.shape->>'disk_mib')::bigint <= o.disk_mib)
                AND (m.kind = 'command' OR cardinality(o.labels) = 0 OR m.host_labels <@ o.labels))
          AND (m.alias IS NULL OR NOT EXISTS (
              SELECT FROM full_alias f WHERE f.org_id = m.org_id AND f.alias = m.alias))
          AND (m.kind = 'command' OR NOT EXISTS (
              SELECT FROM blocked b
              WHERE b.installation_id = m.installation_id
                AND b.scope IN ('', (SELECT r.name FROM repos r WHERE r.repo_id = m.repo_id))))
        ORDER BY free.since NULLS FIRST, m.machine_id
        LIMIT greatest(0, least($2::bigint, room.machines))
    ) next
    ORDER BY next.overdue_s DESC NULLS FIRST, next.place, next.machine_id
    LIMIT $2::bigint
)
SELECT EXISTS (SELECT FROM machines WHERE state = 'queued') AS queued,
       ARRAY (
           SELECT agent_id FROM agents WHERE wanted <> 'working' OR barred IS NOT NULL
           UNION
           SELECT reserved_for FROM machines WHERE state = 'queued' AND reserved_for IS NOT NULL
       ) AS barred,
       found.*
FROM (SELECT) always LEFT JOIN found ON true
ORDER BY found.overdue_s DESC NULLS FIRST, found.place, found.machine_id

-- name: claim_offers
-- Of all processes one wakes somebody for a request. What is being granted or offered at this moment is passed over.
WITH free AS (
    SELECT machine_id FROM machines
    WHERE machine_id = ANY ($1::bigint[]) AND state = 'queued' AND NOT cancel_requested
      AND (offered_until IS NULL OR offered_until <= clock_timestamp() OR machine_id = ANY ($2::bigint[]))
    ORDER BY machine_id
    FOR UPDATE SKIP LOCKED
)
UPDATE machines m SET offered_until = clock_timestamp() + make_interval(secs => $3::double precision)
FROM free WHERE m.machine_id = free.machine_id
RETURNING m.machine_id

-- name: note_offers
-- What waiting agents offer, kept for jobs that wait: whether any host would take them. Who is written elsewhere at this
-- moment (its heartbeat, another process) is passed over.
WITH heard AS (
    SELECT a.agent_id, o.labels, o.arch
    FROM jsonb_to_recordset($1::jsonb) AS o (agent_id text, labels text[], arch text) JOIN agents a USING (agent_id)
    ORDER BY a.agent_id
    FOR UPDATE OF a SKIP LOCKED
)
UPDATE agents a SET last_seen = clock_timestamp(), labels = heard.labels, arch = heard.arch
FROM heard WHERE a.agent_id = heard.agent_id
