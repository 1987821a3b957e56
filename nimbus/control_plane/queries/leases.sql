-- name: lock_caps
-- Whether this transaction alone counts what capped orgs hold, until its commit. Asked for before `grant_lease`, which
-- then sees what the last one to count has written. Nobody waits for it: capped orgs are left out of this look.
SELECT pg_try_advisory_xact_lock(hashtextextended('nimbus.caps', 0))

-- name: grant_lease
-- Whose turn it is: the org that holds the fewest CPUs for its weight, and of its queue the first that fits. What has
-- waited long and fits this host's whole capacity, but not what is free of it, is not passed by: the host makes room
-- for it. One statement decides and takes: no other agent can see the row between choosing and taking it.
-- $8: capped orgs may be counted (lock_caps); false: they are left out; null: where one has a queue, nothing is granted.
WITH RECURSIVE asker AS MATERIALIZED (
    SELECT a.cpus, a.mem_mib, a.slots,
           statement_timestamp() - make_interval(secs => $10::double precision) AS starves_before
    FROM agents a
    WHERE a.agent_id = $1 AND a.wanted = 'working' AND a.barred IS NULL
), queues AS (
    -- from one org that has a queue to the next, by index: neither all orgs are read nor all that is queued
    (SELECT m.org_id, m.turn_at AS oldest FROM machines m WHERE m.state = 'queued' ORDER BY m.org_id, m.turn_at LIMIT 1)
    UNION ALL
    SELECT following.org_id, following.oldest
    FROM queues q
    CROSS JOIN LATERAL (
        SELECT m.org_id, m.turn_at AS oldest FROM machines m
        WHERE m.state = 'queued' AND m.org_id > q.org_id ORDER BY m.org_id, m.turn_at LIMIT 1
    ) following
), capped_alias AS MATERIALIZED (
    SELECT a.org_id, a.alias, a.max_machines FROM label_aliases a JOIN queues USING (org_id)
    WHERE a.max_machines IS NOT NULL
), waiting AS MATERIALIZED (
    SELECT q.org_id, q.oldest, o.weight, o.max_machines, o.max_cpus,
           o.max_machines IS NOT NULL OR o.max_cpus IS NOT NULL AS capped
    FROM queues q JOIN orgs o USING (org_id)
), reservations AS MATERIALIZED (
    -- Those that stand: of a silent, cordoned or barred host none does, nor of one that asks for no more work.
    SELECT m.machine_id, m.org_id, m.reserved_for
    FROM machines m JOIN agents a ON a.agent_id = m.reserved_for
    WHERE m.state = 'queued' AND m.reserved_for IS NOT NULL AND m.arch = $7 AND NOT m.cancel_requested
      AND a.wanted = 'working' AND a.barred IS NULL AND a.last_seen > statement_timestamp() - interval '2 minutes'
      AND (a.doing IS NULL OR a.doing NOT IN ('draining', 'drained', 'leaving'))
), mine AS MATERIALIZED (
    -- One host of an architecture makes room at a time: of two that began at once the older wish stands.
    SELECT machine_id, org_id FROM reservations
    WHERE reserved_for = $1 AND machine_id = (SELECT min(machine_id) FROM reservations)
), look AS MATERIALIZED (
    -- Not open: another database, a pause, or somebody must count first what a capped org holds.
    SELECT seen.same, seen.uncounted, seen.left_out, seen.same AND NOT (seen.paused OR seen.uncounted) AS open
    FROM (
        SELECT w.identity IS NOT DISTINCT FROM database_identity() AS same,
               coalesce(w.grants_paused_until > clock_timestamp(), false) AS paused,
               EXISTS (
                   SELECT FROM waiting q
                   WHERE (q.capped OR EXISTS (SELECT FROM capped_alias a WHERE a.org_id = q.org_id))
                     AND ($8::boolean IS NULL OR (NOT $8 AND q.org_id IN (SELECT org_id FROM mine)))
               ) AS uncounted,
               coalesce(NOT $8, false) AND (EXISTS (SELECT FROM waiting WHERE capped) OR EXISTS (SELECT FROM capped_alias))
                   AS left_out
        FROM database_watch w
    ) seen
), allowed AS MATERIALIZED (
    SELECT w.*, h.cpus, h.cpus::double precision / w.weight AS share, s.served_at
    FROM waiting w
    CROSS JOIN LATERAL (
        SELECT count(*) AS machines, coalesce(sum((m.shape->>'cpus')::integer), 0) AS cpus
        FROM machines m WHERE m.org_id = w.org_id AND m.state IN ('leased', 'running')
    ) h
    CROSS JOIN LATERAL (
        SELECT max(m.leased_at) AS served_at FROM machines m WHERE m.org_id = w.org_id AND m.leased_at IS NOT NULL
    ) s
    WHERE (SELECT open FROM look) AND EXISTS (SELECT FROM asker)
      AND (NOT w.capped OR ($8 AND (w.max_machines IS NULL OR h.machines < w.max_machines)
                               AND (w.max_cpus IS NULL OR h.cpus < w.max_cpus)))
), full_alias AS MATERIALIZED (
    SELECT a.org_id, a.alias FROM capped_alias a JOIN allowed USING (org_id)
    WHERE NOT $8 OR a.max_machines <= (
        SELECT count(*) FROM machines m
        WHERE m.org_id = a.org_id AND m.alias = a.alias AND m.state IN ('leased', 'running'))
), blocked AS MATERIALIZED (
    -- What GitHub refuses an installation: nothing is granted until it is tried again, and then one machine goes ahead
    -- where somebody must act.
    SELECT p.installation_id, p.scope FROM forge_problems p
    WHERE p.task <> 'read'
      AND (p.retry_at > clock_timestamp()
           OR (NOT p.kind = ANY ($9::text[])
               AND p.probed_at >= p.retry_at AND p.probed_at > clock_timestamp() - interval '2 minutes'))
), capacity AS MATERIALIZED (
    -- What this host could give if all that it runs had ended; of a host that runs nothing, what is free.
    SELECT CASE WHEN held.machines = 0 THEN $2 ELSE greatest($2 + held.cpus, asker.cpus) END AS cpus,
           CASE WHEN held.machines = 0 THEN $3 ELSE greatest($3 + held.mem_mib, asker.mem_mib) END AS mem_mib,
           $6::bigint + held.disk_mib AS disk_mib
    FROM asker
    CROSS JOIN LATERAL (
        SELECT count(*) AS machines, coalesce(sum((m.shape->>'cpus')::integer), 0) AS cpus,
               coalesce(sum((m.shape->>'mem_mib')::bigint), 0) AS mem_mib,
               coalesce(sum((m.shape->>'disk_mib')::bigint), 0) AS disk_mib
        FROM machines m WHERE m.agent_id = $1 AND m.state IN ('leased', 'running')
    ) held
), hosts AS MATERIALIZED (
    SELECT DISTINCT cpus, mem_mib, disk_mib, labels FROM agents
    WHERE arch = $7 AND wanted = 'working' AND barred IS NULL
      AND last_seen > statement_timestamp() - interval '2 minutes'
      AND (doing IS NULL OR doing NOT IN ('draining', 'drained', 'leaving'))
), turns AS (
    SELECT 0 AS turn, a.*, mine.machine_id AS reserved FROM mine JOIN allowed a USING (org_id)
    UNION ALL
    SELECT row_number() OVER (
               ORDER BY share, coalesce(extract(epoch FROM statement_timestamp() - served_at) * weight, 'infinity') DESC,
                        oldest, org_id
           ), a.*, NULL::bigint
    FROM allowed a
), chosen AS (
    SELECT next.machine_id, next.fits
    FROM (SELECT * FROM turns ORDER BY turn) t
    CROSS JOIN LATERAL (
        -- Holds up: what has waited long, and some host and its org's cap could hold, is not passed by within a capped
        -- org. Its smaller machines would fill the cap on this host or another, and it would wait for ever.
        SELECT m.machine_id, f.fits, g.goes
        FROM machines m
        CROSS JOIN LATERAL (
            SELECT (m.shape->>'cpus')::integer <= $2 AND (m.shape->>'mem_mib')::integer <= $3
                   AND ($6::bigint IS NULL OR (m.shape->>'disk_mib')::bigint <= $6) AS fits,
                   coalesce((m.shape->>'cpus')::integer <= t.max_cpus - t.cpus, true) AS below_cap,
                   $10 > 0 AND m.created_at < (SELECT starves_before FROM asker) AS starves
        ) f
        CROSS JOIN LATERAL (
            SELECT f.below_cap AND (f.fits OR (
                       (t.reserved IS NOT NULL OR (f.starves AND NOT EXISTS (SELECT FROM reservations)))
                       AND (m.shape->>'cpus')::integer <= (SELECT cpus FROM capacity)
                       AND (m.shape->>'mem_mib')::integer <= (SELECT mem_mib FROM capacity)
                       AND ($6 IS NULL OR (m.shape->>'disk_mib')::bigint <= (SELECT disk_mib FROM capacity)))) AS goes
        ) g
        -- One CASE and not a list of conditions: for each of these the planner expects fewer rows, and for the one row
        -- that it expects in the end it would sort the whole queue instead of reading the index in its order.
        WHERE m.org_id = t.org_id AND m.state = 'queued' AND CASE
            WHEN m.cancel_requested OR m.arch <> $7 OR m.machine_id <> t.reserved THEN false
            WHEN m.kind <> 'command' AND cardinality($4::text[]) > 0 AND NOT m.host_labels <@ $4::text[] THEN false
            WHEN NOT (g.goes OR (
                t.capped AND f.starves AND t.reserved IS NULL
                AND coalesce((m.shape->>'cpus')::integer <= t.max_cpus, true)
                AND EXISTS (
                    SELECT FROM hosts h
                    WHERE h.cpus >= (m.shape->>'cpus')::integer AND h.mem_mib >= (m.shape->>'mem_mib')::integer
                      AND (h.disk_mib IS NULL OR h.disk_mib >= (m.shape->>'disk_mib')::bigint)
                      AND (m.kind = 'command' OR coalesce(cardinality(h.labels), 0) = 0
                           OR m.host_labels <@ (h.labels || ARRAY['self-hosted', 'linux', $7]))))) THEN false
            WHEN m.alias IS NOT NULL AND EXISTS (
                SELECT FROM full_alias a WHERE a.org_id = m.org_id AND a.alias = m.alias) THEN false
            ELSE m.kind = 'command' OR NOT EXISTS (
                SELECT FROM blocked b
                WHERE b.installation_id = m.installation_id
                  AND b.scope IN ('', (SELECT r.name FROM repos r WHERE r.repo_id = m.repo_id)))
        END
        ORDER BY m.turn_at, m.machine_id
        LIMIT 1
        FOR UPDATE OF m SKIP LOCKED
    ) next
    WHERE next.goes
    LIMIT 1
), taken AS (
    UPDATE machines
    SET state = 'leased',
        fence = fence + 1,
        lease_id = gen_random_uuid(),
        agent_id = $1,
        leased_at = clock_timestamp(),
        answered = false,
        deadline = clock_timestamp() + make_interval(secs => $5::double precision),
        attempts = attempts + 1,
        reserved_for = NULL,
        ending = NULL, exit_code = NULL, signal = NULL, cause = NULL, phases = NULL, attestation = NULL,
        usage = NULL, usage_at = NULL
    FROM chosen
    WHERE machines.machine_id = chosen.machine_id AND chosen.fits AND machines.state = 'queued'
    RETURNING machines.*
), reserved AS (
    UPDATE machines SET reserved_for = $1
    FROM chosen
    WHERE machines.machine_id = chosen.machine_id AND NOT chosen.fits AND machines.state = 'queued'
      AND machines.reserved_for IS DISTINCT FROM $1
    RETURNING machines.machine_id
), let_go AS (
    -- What this host was to make room for and cannot hold, or may not any more.
    UPDATE machines SET reserved_for = NULL
    FROM (
        SELECT machine_id FROM machines
        WHERE state = 'queued' AND reserved_for = $1 AND (SELECT open FROM look)
          AND machine_id NOT IN (SELECT machine_id FROM chosen)
        FOR UPDATE SKIP LOCKED
    ) given_up
    WHERE machines.machine_id = given_up.machine_id AND machines.state = 'queued'
), noted AS (
    INSERT INTO machine_events (machine_id, state_from, state_to, event, fence, agent_id, told_by)
    SELECT machine_id, 'queued', 'leased', 'lease', fence, agent_id, 'agent' FROM taken
), probing AS (
    UPDATE forge_problems p SET probed_at = clock_timestamp()
    FROM taken t
    WHERE t.kind = 'runner' AND p.installation_id = t.installation_id AND p.task <> 'read'
      AND p.scope IN ('', (SELECT r.name FROM repos r WHERE r.repo_id = t.repo_id))
)
SELECT look.same, look.uncounted, look.left_out, reserved.machine_id AS reserved, t.*
FROM look LEFT JOIN reserved ON true LEFT JOIN taken t ON true

-- name: lock_held
-- The row, if the caller's lease is the last one that was granted for it. `refused`: under this lease the machine got no
-- runner, in a place where GitHub refuses them.
SELECT m.*, j.state AS job_state, coalesce(m.deadline > clock_timestamp(), false) AS alive,
       m.kind = 'runner' AND (m.registered_at IS NULL OR m.runner_fence IS DISTINCT FROM m.fence) AND EXISTS (
           SELECT FROM forge_problems p
           WHERE p.installation_id = m.installation_id AND p.task <> 'read'
             AND p.scope IN ('', (SELECT r.name FROM repos r WHERE r.repo_id = m.repo_id))) AS refused
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.machine_id = $1 AND m.lease_id = $2::uuid AND m.fence = $3 AND m.agent_id = $4
FOR UPDATE OF m

-- name: renew
-- One statement: lock, look at the deadline, move it, and note that the guest runs ($5) where that is new.
-- A deadline is never moved for a lease that has ended, and never moved back, because a holder may not have heard of
-- the shorter one. While granting pauses, a deadline that is past tells nothing.
WITH held AS MATERIALIZED (
    SELECT m.machine_id, m.org_id, m.job_id, m.repo_id, m.kind, m.state, m.fence, m.agent_id,
           CASE WHEN m.kind = 'runner' AND j.state = 'in_progress' THEN $7::double precision ELSE $6 END AS ttl_s
    FROM machines m LEFT JOIN jobs j USING (job_id)
    WHERE m.machine_id = $1 AND m.lease_id = $2::uuid AND m.fence = $3 AND m.agent_id = $4
    FOR UPDATE OF m
), renewed AS (
    UPDATE machines m
    SET state = CASE WHEN $5 THEN 'running' ELSE m.state END,
        answered = true,
        deadline = greatest(m.deadline, clock_timestamp() + make_interval(secs => held.ttl_s)),
        usage = coalesce($8::jsonb, m.usage),
        usage_at = CASE WHEN $8::jsonb IS NULL THEN m.usage_at ELSE clock_timestamp() END
    FROM held
    WHERE m.machine_id = held.machine_id AND m.state IN ('leased', 'running')
      AND (m.deadline > clock_timestamp() OR (SELECT grants_paused_until > clock_timestamp() FROM database_watch))
    RETURNING held.*, m.cancel_requested
), noted AS (
    INSERT INTO machine_events (machine_id, state_from, state_to, event, fence, agent_id, told_by)
    SELECT machine_id, 'leased', 'running', 'start', fence, agent_id, 'agent' FROM renewed WHERE $5 AND state = 'leased'
), started AS (
    -- What ended the machine before stands in the events: beside a job that runs again it would be read as its own.
    UPDATE jobs
    SET state = 'in_progress', started_at = coalesce(started_at, clock_timestamp()), cause = NULL,
        told_by = 'agent:' || renewed.agent_id
    FROM renewed
    WHERE $5 AND renewed.state = 'leased' AND renewed.kind = 'command'
      AND jobs.job_id = renewed.job_id AND jobs.source = 'api' AND jobs.state = 'queued'
), seen AS (
    -- Seldom and without waiting: an agent's many leases share this row.
    UPDATE agents SET last_seen = clock_timestamp()
    FROM (
        SELECT agent_id FROM agents
        WHERE agent_id = $4 AND last_seen < statement_timestamp() - interval '5 seconds' AND EXISTS (SELECT FROM renewed)
        FOR NO KEY UPDATE SKIP LOCKED
    ) holder
    WHERE agents.agent_id = holder.agent_id
)
SELECT org_id, job_id, repo_id, ttl_s, cancel_requested FROM renewed

-- name: first_answer
-- What the end of this very lease came to, for a holder whose reply was lost.
SELECT state_to FROM machine_events
WHERE machine_id = $1 AND fence = $2
  AND state_from IN ('leased', 'running') AND state_to NOT IN ('leased', 'running')
