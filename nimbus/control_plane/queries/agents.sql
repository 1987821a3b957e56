-- name: lock_life
SELECT boot_id FROM agents WHERE agent_id = $1 FOR UPDATE

-- name: enrol_agent
INSERT INTO agents (agent_id, version, boot_id, cpus, mem_mib, barred) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (agent_id) DO UPDATE
SET version = excluded.version, boot_id = excluded.boot_id, cpus = excluded.cpus, mem_mib = excluded.mem_mib,
    barred = excluded.barred, last_seen = clock_timestamp(),
    enrolled_at = CASE WHEN agents.boot_id = excluded.boot_id THEN agents.enrolled_at ELSE clock_timestamp() END

-- name: note_start
-- A row where this start of the agent was not heard of before.
UPDATE agents SET start = $2 WHERE agent_id = $1 AND start < $2 RETURNING true

-- name: hear_heartbeat
-- One statement for each heartbeat, and no index moves by it. A life that returns within $15 seconds after another one
-- had taken its place is a second host of that name. No row where the host was forgotten.
UPDATE agents
SET version = $2, life = $3, doing = $4, vmm = $5, arch = $6, labels = $7, barred = $8,
    cpus = $9, mem_mib = $10, slots = $11, free_cpus = $12, free_mem_mib = $13, free_slots = $14,
    free_disk_mib = $16, disk_mib = $17, pool = $18,
    last_seen = statement_timestamp(), heartbeat_at = statement_timestamp(),
    former_life = CASE WHEN life <> $3 THEN life ELSE former_life END,
    former_at = CASE WHEN life <> $3 THEN heartbeat_at ELSE former_at END,
    rival_at = CASE
        WHEN life <> $3 AND former_life = $3 AND former_at > statement_timestamp() - make_interval(secs => $15)
        THEN statement_timestamp() ELSE rival_at END
WHERE agent_id = $1
RETURNING wanted, mirrored, coalesce(rival_at = heartbeat_at, false) AS has_rival

-- name: list_versions
SELECT agent_id, version, barred FROM agents

-- name: bar_agent
UPDATE agents SET barred = $2 WHERE agent_id = $1

-- name: note_mirrored
UPDATE agents SET mirrored = $2 WHERE agent_id = $1

-- name: forget_mirrored
UPDATE agents SET mirrored = NULL WHERE mirrored IS NOT NULL
