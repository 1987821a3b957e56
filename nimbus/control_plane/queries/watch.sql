-- name: watched
SELECT identity IS NOT DISTINCT FROM database_identity() AS same,
       coalesce(grants_paused_until > clock_timestamp(), false) AS paused
FROM database_watch

-- name: lock_watch
SELECT identity, grants_paused_until FROM database_watch FOR UPDATE

-- name: look
SELECT database_identity() AS identity, clock_timestamp() AS clock

-- name: last_sight
-- This host's own last look, else the newest of any.
SELECT boot_id, clock, before_s, after_s FROM clock_sights ORDER BY (boot_id = $1) DESC, clock DESC LIMIT 1

-- name: leases_held
SELECT EXISTS (SELECT FROM machines WHERE state IN ('leased', 'running'))

-- name: keep_sight
WITH forgotten AS (
    DELETE FROM clock_sights WHERE boot_id <> $1 AND clock < $2::timestamptz - interval '30 days'
)
INSERT INTO clock_sights (boot_id, clock, before_s, after_s) VALUES ($1, $2, $3, $4)
ON CONFLICT (boot_id) DO UPDATE
SET clock = excluded.clock, before_s = excluded.before_s, after_s = excluded.after_s

-- name: keep_watch
-- A pause counts from now, also where another one goes on: that one's end was told by a clock that has moved.
UPDATE database_watch
SET identity = $1,
    grants_paused_until = CASE
        WHEN $2::text IS NOT NULL THEN clock_timestamp() + make_interval(secs => $3::double precision)
        WHEN grants_paused_until > clock_timestamp() THEN grants_paused_until
    END,
    pause_cause = CASE
        WHEN $2::text IS NOT NULL THEN $2
        WHEN grants_paused_until > clock_timestamp() THEN pause_cause
    END
RETURNING grants_paused_until IS NOT NULL AS paused, pause_cause
