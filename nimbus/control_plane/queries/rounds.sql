-- name: begin_round
-- Whoever writes this row holds the lock, so nobody ever waits for the row. A time that is yet to come was written by a
-- clock that has been set back since.
INSERT INTO duties (name, holder, until, done_at)
SELECT $1, 'a round', clock_timestamp(), clock_timestamp()
WHERE pg_try_advisory_xact_lock(hashtextextended('nimbus.round.' || $1, 0))
ON CONFLICT (name) DO UPDATE SET done_at = excluded.done_at
WHERE duties.done_at IS NULL
   OR duties.done_at > clock_timestamp()
   OR duties.done_at + make_interval(secs => $2::double precision) <= clock_timestamp()
RETURNING name
