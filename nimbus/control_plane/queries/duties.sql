-- name: take
-- Nobody holds it, or its holder fell silent; and its last round is long enough ago. What a clock wrote that was set back
-- since then tells nothing: a hold that is longer than any, a round that is yet to come.
INSERT INTO duties (name, holder, until)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3::double precision))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE (duties.until <= clock_timestamp()
       OR duties.until > clock_timestamp() + make_interval(secs => $3::double precision))
  AND (duties.done_at IS NULL
       OR duties.done_at > clock_timestamp()
       OR duties.done_at + make_interval(secs => $4::double precision) <= clock_timestamp())
RETURNING notes

-- name: due_in
-- When it may be worth another try: another's hold has run out by then, or the next round is due.
SELECT greatest(extract(epoch FROM until - clock_timestamp()),
                extract(epoch FROM done_at - clock_timestamp()) + $2::double precision, 0)::double precision
FROM duties WHERE name = $1

-- name: renew
UPDATE duties SET until = clock_timestamp() + make_interval(secs => $3::double precision)
WHERE name = $1 AND holder = $2
RETURNING name

-- name: finish
UPDATE duties SET until = clock_timestamp(), done_at = clock_timestamp(), notes = $3
WHERE name = $1 AND holder = $2
RETURNING name

-- name: let_go
UPDATE duties SET until = clock_timestamp() WHERE name = $1 AND holder = $2

-- name: ages
SELECT name, extract(epoch FROM clock_timestamp() - done_at)::double precision AS age_s
FROM duties WHERE done_at IS NOT NULL
