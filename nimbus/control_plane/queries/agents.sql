-- name: lock_life
SELECT boot_id FROM agents WHERE agent_id = $1 FOR UPDATE

-- name: enrol_agent
INSERT INTO agents (agent_id, version, boot_id, cpus, mem_mib) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (agent_id) DO UPDATE
SET version = excluded.version, boot_id = excluded.boot_id, cpus = excluded.cpus, mem_mib = excluded.mem_mib,
    last_seen = clock_timestamp(),
    enrolled_at = CASE WHEN agents.boot_id = excluded.boot_id THEN agents.enrolled_at ELSE clock_timestamp() END

-- name: note_start
-- A row where this start of the agent was not heard of before.
UPDATE agents SET start = $2 WHERE agent_id = $1 AND start < $2 RETURNING true

-- name: list_agents
SELECT agent_id, version, cpus, mem_mib, last_seen,
       extract(epoch FROM clock_timestamp() - last_seen)::double precision AS silent_s
FROM agents ORDER BY agent_id LIMIT 1000

-- name: count_seen_agents
SELECT count(*) FROM agents WHERE last_seen > clock_timestamp() - interval '1 minute'
