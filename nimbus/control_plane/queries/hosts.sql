-- name: list_hosts
-- Those after $1 by name, at most $2; or the one that is called $3.
SELECT a.*, coalesce(h.machines, 0) AS machines, coalesce(h.held_cpus, 0) AS held_cpus,
       extract(epoch FROM clock_timestamp() - a.last_seen)::double precision AS silent_s,
       extract(epoch FROM clock_timestamp() - a.rival_at)::double precision AS rival_s
FROM agents a
LEFT JOIN (
    SELECT m.agent_id, count(*) AS machines, sum((m.shape->>'cpus')::integer) AS held_cpus
    FROM machines m WHERE m.state IN ('leased', 'running') GROUP BY m.agent_id
) h USING (agent_id)
WHERE a.agent_id > $1 AND ($3::text IS NULL OR a.agent_id = $3)
ORDER BY a.agent_id
LIMIT $2

-- name: lock_host
SELECT extract(epoch FROM clock_timestamp() - last_seen)::double precision AS silent_s,
       (SELECT count(*) FROM machines m WHERE m.agent_id = a.agent_id AND m.state IN ('leased', 'running')) AS machines
FROM agents a WHERE agent_id = $1
FOR UPDATE OF a

-- name: machines_of_host
-- What the control plane has leased to it, which is the truth; the mirror's records are what it says itself.
SELECT m.machine_id, m.fence, m.state, m.org_id, m.job_id, m.kind, m.leased_at, m.deadline
FROM machines m
WHERE m.agent_id = $1 AND m.state IN ('leased', 'running')
ORDER BY m.machine_id
LIMIT 4096

-- name: want
UPDATE agents
SET wanted = $2, wanted_by = CASE WHEN wanted = $2 THEN wanted_by ELSE $3 END,
    wanted_at = CASE WHEN wanted = $2 THEN wanted_at ELSE clock_timestamp() END
WHERE agent_id = $1
RETURNING agent_id

-- name: forget_host
DELETE FROM agents WHERE agent_id = $1

-- name: standings
-- For the metric: each host's standing, whatever their number.
SELECT doing, wanted, barred, extract(epoch FROM clock_timestamp() - last_seen)::double precision AS silent_s
FROM agents
