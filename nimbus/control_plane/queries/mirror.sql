-- name: note_report
-- A row where this report is later than the one that is kept.
INSERT INTO agent_reports AS r (agent_id, life, start, beat) VALUES ($1, $2, $3, $4)
ON CONFLICT (agent_id) DO UPDATE
SET life = excluded.life, start = excluded.start, beat = excluded.beat, told_at = clock_timestamp()
WHERE r.life <> excluded.life OR (r.start, r.beat) < (excluded.start, excluded.beat)
RETURNING true

-- name: drop_records
DELETE FROM agent_records WHERE agent_id = $1 AND vm <> ALL ($2::text[])

-- name: keep_records
INSERT INTO agent_records AS r (agent_id, vm, state, machine_id, fence, claims, lease_until)
SELECT $1, vm, state, machine_id, fence, claims, lease_until
FROM jsonb_to_recordset($2::jsonb)
     AS told (vm text, state text, machine_id bigint, fence bigint, claims text[], lease_until timestamptz)
ON CONFLICT (agent_id, vm) DO UPDATE
SET state = excluded.state, machine_id = excluded.machine_id, fence = excluded.fence, claims = excluded.claims,
    lease_until = excluded.lease_until,
    since = CASE WHEN r.state = excluded.state THEN r.since ELSE excluded.since END
WHERE (r.state, r.machine_id, r.fence, r.claims, r.lease_until)
      IS DISTINCT FROM (excluded.state, excluded.machine_id, excluded.fence, excluded.claims, excluded.lease_until)

-- name: forget_report
DELETE FROM agent_reports WHERE agent_id = $1

-- name: list_records
SELECT vm, state, machine_id, fence, claims, lease_until, since
FROM agent_records WHERE agent_id = $1 ORDER BY vm
