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

-- name: hear_heartbeats
-- One statement for the heartbeats of a moment ($1), and no index moves by it. A life that returns within $2 seconds
-- after another one had taken its place is a second host of that name. No row where the host was forgotten. `rests`:
-- nothing runs there, and nothing has changed but the room that the rest of the host takes and gives.
WITH told AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS b (
        agent_id text, version text, life text, doing text, vmm text, arch text, labels text[], barred text,
        cpus integer, mem_mib integer, slots integer, disk_mib bigint,
        free_cpus integer, free_mem_mib integer, free_slots integer, free_disk_mib bigint, pool jsonb)
), held AS MATERIALIZED (
    -- in one order, whoever else writes some of them at the same time
    SELECT a.agent_id,
           t.free_slots = t.slots AND (a.life, a.version, a.doing, a.pool, a.free_slots, a.free_cpus, a.slots)
               IS NOT DISTINCT FROM (t.life, t.version, t.doing, t.pool, t.free_slots, t.free_cpus, t.slots) AS rests
    FROM agents a JOIN told t USING (agent_id) ORDER BY a.agent_id FOR NO KEY UPDATE OF a
)
UPDATE agents a
SET version = b.version, life = b.life, doing = b.doing, vmm = b.vmm, arch = b.arch, labels = b.labels,
    barred = b.barred, cpus = b.cpus, mem_mib = b.mem_mib, slots = b.slots, disk_mib = b.disk_mib,
    free_cpus = b.free_cpus, free_mem_mib = b.free_mem_mib, free_slots = b.free_slots,
    free_disk_mib = b.free_disk_mib, pool = b.pool,
    last_seen = statement_timestamp(), heartbeat_at = statement_timestamp(),
    former_life = CASE WHEN a.life <> b.life THEN a.life ELSE a.former_life END,
    former_at = CASE WHEN a.life <> b.life THEN a.heartbeat_at ELSE a.former_at END,
    rival_at = CASE
        WHEN a.life <> b.life AND a.former_life = b.life
             AND a.former_at > statement_timestamp() - make_interval(secs => $2::double precision)
        THEN statement_timestamp() ELSE a.rival_at END
FROM told b JOIN held USING (agent_id)
WHERE a.agent_id = b.agent_id
RETURNING a.agent_id, a.wanted, a.mirrored, coalesce(a.rival_at = a.heartbeat_at, false) AS has_rival, held.rests

-- name: list_versions
SELECT agent_id, version, barred FROM agents

-- name: bar_agent
UPDATE agents SET barred = $2 WHERE agent_id = $1

-- name: note_mirrored
UPDATE agents SET mirrored = $2 WHERE agent_id = $1

-- name: forget_mirrored
UPDATE agents SET mirrored = NULL WHERE mirrored IS NOT NULL
