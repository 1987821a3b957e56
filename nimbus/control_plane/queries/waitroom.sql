-- name: find_unoffered
-- Queued requests that nobody is woken for and some waiting agent has room for ($1, its largest offers), of each org in
-- turn, those first that nobody was woken for yet. What the grant would refuse now (leases.sql) is left out, so that a
-- long queue of it wakes nobody and hides nothing. $2: at most so many. $3: may be offered before their time.
-- Always one row at least: whether anything is queued at all, and who is granted nothing (one that makes room for a
-- large machine looks by itself whenever it has more room).
WITH RECURSIVE waiting AS MATERIALIZED (
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
    WHERE NOT EXISTS (SELECT FROM database_watch WHERE grants_paused_until > clock_timestamp())
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
        SELECT m.machine_id, m.fence, m.kind, m.arch, m.host_labels, (m.shape->>'cpus')::integer AS cpus,
               (m.shape->>'mem_mib')::integer AS mem_mib, coalesce((m.shape->>'disk_mib')::bigint, 0) AS disk_mib,
               extract(epoch FROM clock_timestamp() - f.until)::double precision AS overdue_s,
               row_number() OVER (ORDER BY f.until NULLS FIRST, m.turn_at, m.machine_id) AS place
        FROM machines m
        LEFT JOIN offers f ON f.machine_id = m.machine_id AND f.fence = m.fence AND NOT f.machine_id = ANY ($3::bigint[])
        WHERE m.org_id = room.org_id AND m.state = 'queued' AND NOT m.cancel_requested
          AND (f.until IS NULL OR f.until <= clock_timestamp())
          AND (room.cpus IS NULL OR (m.shape->>'cpus')::integer <= room.cpus)
          AND EXISTS (
              SELECT FROM waiting w
              WHERE w.arch = m.arch
                AND (m.shape->>'cpus')::integer <= w.cpus
                AND (m.shape->>'mem_mib')::integer <= w.mem_mib
                AND (w.disk_mib IS NULL OR (m.shape->>'disk_mib')::bigint <= w.disk_mib)
                AND (m.kind = 'command' OR cardinality(w.labels) = 0 OR m.host_labels <@ w.labels))
          AND (m.alias IS NULL OR NOT EXISTS (
              SELECT FROM full_alias a WHERE a.org_id = m.org_id AND a.alias = m.alias))
          AND (m.kind = 'command' OR NOT EXISTS (
              SELECT FROM blocked b
              WHERE b.installation_id = m.installation_id
                AND b.scope IN ('', (SELECT r.name FROM repos r WHERE r.repo_id = m.repo_id))))
        ORDER BY f.until NULLS FIRST, m.turn_at, m.machine_id
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
-- Of all processes one wakes somebody for a request. $3: may be offered before their time. Rows that are long over go.
WITH gone AS (
    DELETE FROM offers WHERE machine_id IN (
        SELECT machine_id FROM offers
        WHERE until < clock_timestamp() - interval '1 minute' AND NOT machine_id = ANY ($1::bigint[])
        FOR UPDATE SKIP LOCKED)
)
INSERT INTO offers AS f (machine_id, fence, until)
SELECT asked.machine_id, asked.fence, clock_timestamp() + make_interval(secs => $4::double precision)
FROM unnest($1::bigint[], $2::bigint[]) AS asked (machine_id, fence)
ORDER BY asked.machine_id
ON CONFLICT (machine_id) DO UPDATE SET fence = excluded.fence, until = excluded.until
WHERE f.fence < excluded.fence OR f.until <= clock_timestamp() OR f.machine_id = ANY ($3::bigint[])
RETURNING machine_id

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
