-- name: lock_caps
-- Whether this transaction alone counts what capped orgs hold, until its commit. Asked for before `grant_lease`, which
-- then sees what the last one to count has written. Nobody waits for it: capped orgs are left out of this look.
SELECT CASE WHEN EXISTS (
    SELECT FROM orgs o
    WHERE (max_machines IS NOT NULL OR max_cpus IS NOT NULL
           OR EXISTS (SELECT FROM label_aliases a WHERE a.org_id = o.org_id AND a.max_machines IS NOT NULL))
      AND EXISTS (SELECT FROM machines m WHERE m.org_id = o.org_id AND m.state = 'queued')
) THEN pg_try_advisory_xact_lock(hashtextextended('nimbus.caps', 0)) END

-- name: grant_lease
-- The org that holds the fewest CPUs is served first, and of its queue the oldest that fits. $8: capped orgs may be
-- counted (lock_caps). One statement takes it: no other agent can see the row between choosing and taking it.
WITH waiting AS MATERIALIZED (
    SELECT o.org_id, q.oldest, o.max_machines, o.max_cpus, h.machines, h.cpus,
           o.max_machines IS NOT NULL OR o.max_cpus IS NOT NULL AS capped
    FROM orgs o
    CROSS JOIN LATERAL (
        SELECT min(m.machine_id) AS oldest FROM machines m WHERE m.org_id = o.org_id AND m.state = 'queued'
    ) q
    CROSS JOIN LATERAL (
        SELECT count(*) AS machines, coalesce(sum((m.shape->>'cpus')::integer), 0) AS cpus
        FROM machines m
        WHERE m.org_id = o.org_id AND m.state IN ('leased', 'running') AND q.oldest IS NOT NULL
    ) h
    WHERE q.oldest IS NOT NULL
), allowed AS MATERIALIZED (
    SELECT * FROM waiting
    WHERE NOT capped
       OR ($8 AND (max_machines IS NULL OR machines < max_machines) AND (max_cpus IS NULL OR cpus < max_cpus))
), full_alias AS MATERIALIZED (
    SELECT a.org_id, a.alias
    FROM label_aliases a JOIN allowed USING (org_id)
    WHERE a.max_machines IS NOT NULL AND (NOT $8 OR a.max_machines <= (
        SELECT count(*) FROM machines m
        WHERE m.org_id = a.org_id AND m.alias = a.alias AND m.state IN ('leased', 'running')))
), blocked AS MATERIALIZED (
    -- What GitHub refuses an installation: nothing is granted until it is tried again, and then one machine goes ahead
    -- where somebody must act.
    SELECT p.installation_id, p.scope FROM forge_problems p
    WHERE p.task <> 'read'
      AND (p.retry_at > clock_timestamp()
           OR (NOT p.kind = ANY ($9::text[])
               AND p.probed_at >= p.retry_at AND p.probed_at > clock_timestamp() - interval '2 minutes'))
), chosen AS (
    SELECT next.machine_id
    FROM (SELECT * FROM allowed ORDER BY cpus, oldest) turn
    CROSS JOIN LATERAL (
        SELECT m.machine_id
        FROM machines m
        WHERE m.org_id = turn.org_id AND m.state = 'queued'
          AND NOT m.cancel_requested
          AND m.arch = $7
          AND (m.shape->>'cpus')::integer <= least($2, turn.max_cpus - turn.cpus)
          AND (m.shape->>'mem_mib')::integer <= $3
          AND ($6::bigint IS NULL OR (m.shape->>'disk_mib')::bigint <= $6)
          AND (m.kind = 'command' OR cardinality($4::text[]) = 0 OR m.host_labels <@ $4::text[])
          AND (m.alias IS NULL OR NOT EXISTS (
              SELECT FROM full_alias f WHERE f.org_id = m.org_id AND f.alias = m.alias))
          AND (m.kind = 'command' OR NOT EXISTS (
              SELECT FROM blocked b
              WHERE b.installation_id = m.installation_id
                AND b.scope IN ('', (SELECT r.name FROM repos r WHERE r.repo_id = m.repo_id))))
        ORDER BY m.machine_id
        LIMIT 1
        FOR UPDATE OF m SKIP LOCKED
    ) next
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
        ending = NULL, exit_code = NULL, signal = NULL, cause = NULL, phases = NULL, attestation = NULL,
        usage = NULL, usage_at = NULL
    FROM chosen
    WHERE machines.machine_id = chosen.machine_id AND machines.state = 'queued'
    RETURNING machines.*
), noted AS (
    INSERT INTO machine_events (machine_id, state_from, state_to, event, fence, agent_id, told_by)
    SELECT machine_id, 'queued', 'leased', 'lease', fence, agent_id, 'agent' FROM taken
), probing AS (
    UPDATE forge_problems p SET probed_at = clock_timestamp()
    FROM taken t
    WHERE t.kind = 'runner' AND p.installation_id = t.installation_id AND p.task <> 'read'
      AND p.scope IN ('', (SELECT r.name FROM repos r WHERE r.repo_id = t.repo_id))
)
SELECT * FROM taken

-- name: lock_held
-- The row, if the caller's lease is the last one that was granted for it.
SELECT m.*, j.state AS job_state, coalesce(m.deadline > clock_timestamp(), false) AS alive
FROM machines m LEFT JOIN jobs j USING (job_id)
WHERE m.machine_id = $1 AND m.lease_id = $2::uuid AND m.fence = $3 AND m.agent_id = $4
FOR UPDATE OF m

-- name: renew
-- The guard stands here again: a deadline is never moved for a lease that has ended, and never moved back,
-- because a holder may not have heard of the shorter one. While granting pauses, a deadline that is past tells nothing.
UPDATE machines
SET state = $5,
    answered = true,
    deadline = greatest(deadline, clock_timestamp() + make_interval(secs => $6::double precision)),
    usage = coalesce($7::jsonb, usage),
    usage_at = CASE WHEN $7::jsonb IS NULL THEN usage_at ELSE clock_timestamp() END
WHERE machine_id = $1 AND lease_id = $2::uuid AND fence = $3 AND agent_id = $4
  AND state IN ('leased', 'running')
  AND (deadline > clock_timestamp() OR (SELECT grants_paused_until > clock_timestamp() FROM database_watch))
RETURNING cancel_requested

-- name: was_refused
-- Whether the machine got no runner under this lease, in a place where GitHub refuses them.
SELECT EXISTS (
    SELECT FROM machines m JOIN forge_problems p USING (installation_id)
    WHERE m.machine_id = $1 AND m.kind = 'runner' AND p.task <> 'read'
      AND (m.registered_at IS NULL OR m.runner_fence IS DISTINCT FROM m.fence)
      AND p.scope IN ('', (SELECT r.name FROM repos r WHERE r.repo_id = m.repo_id)))

-- name: first_answer
-- What the end of this very lease came to, for a holder whose reply was lost.
SELECT state_to FROM machine_events
WHERE machine_id = $1 AND fence = $2
  AND state_from IN ('leased', 'running') AND state_to NOT IN ('leased', 'running')

-- name: start_command_job
UPDATE jobs SET state = 'in_progress', started_at = coalesce(started_at, clock_timestamp())
WHERE job_id = $1 AND source = 'api' AND state = 'queued'

-- name: seen_agent
UPDATE agents SET last_seen = clock_timestamp() WHERE agent_id = $1

-- name: offered
-- Kept for jobs that wait: whether any host would take them.
UPDATE agents SET last_seen = clock_timestamp(), labels = $2, arch = $3 WHERE agent_id = $1
