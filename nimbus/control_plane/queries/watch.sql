-- name: watched
SELECT identity IS NOT DISTINCT FROM database_identity() AS same,
       coalesce(grants_paused_until > clock_timestamp(), false) AS paused
FROM database_watch

-- name: lock_watch
SELECT identity, clock, boot_id, before_s, after_s, grants_paused_until FROM database_watch FOR UPDATE

-- name: look
SELECT database_identity() AS identity, clock_timestamp() AS clock

-- name: leases_held
SELECT EXISTS (SELECT FROM machines WHERE state IN ('leased', 'running'))

-- name: keep_sight
-- A pause counts from now, also where another one goes on: that one's end was told by a clock that has moved.
UPDATE database_watch
SET identity = $1, clock = $2, boot_id = $3, before_s = $4, after_s = $5,
    grants_paused_until = CASE
        WHEN $6::text IS NOT NULL THEN clock_timestamp() + make_interval(secs => $7::double precision)
        WHEN grants_paused_until > clock_timestamp() THEN grants_paused_until
    END,
    pause_cause = CASE
        WHEN $6::text IS NOT NULL THEN $6
        WHEN grants_paused_until > clock_timestamp() THEN pause_cause
    END
RETURNING grants_paused_until IS NOT NULL AS paused, pause_cause
