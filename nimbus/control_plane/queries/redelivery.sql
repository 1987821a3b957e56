-- name: note_missed
-- What GitHub could not deliver, but for what stands in the inbox: an answer of ours that came too late, or a later
-- attempt that succeeded.
INSERT INTO missed_deliveries (guid, delivery_id, delivered_at)
SELECT failed.guid, failed.delivery_id, failed.delivered_at
FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS failed (guid, delivery_id, delivered_at)
WHERE NOT EXISTS (SELECT FROM deliveries d WHERE d.guid = failed.guid)
ON CONFLICT (guid) DO UPDATE SET delivery_id = excluded.delivery_id, delivered_at = excluded.delivered_at
WHERE missed_deliveries.delivery_id < excluded.delivery_id

-- name: forget_arrived
DELETE FROM missed_deliveries WHERE guid = ANY ($1::text[])

-- name: forget
DELETE FROM missed_deliveries WHERE guid = $1

-- name: drop_came
DELETE FROM missed_deliveries m USING deliveries d WHERE d.guid = m.guid

-- name: drop_given_up
-- They were asked for often enough, or GitHub keeps them no longer.
DELETE FROM missed_deliveries m
WHERE m.delivered_at < clock_timestamp() - make_interval(secs => $2::double precision)
   OR EXISTS (SELECT FROM redeliveries r WHERE r.guid = m.guid AND r.attempts >= $1)

-- name: due
-- Later and later after each time that it was asked for. The newest first: of a job that ended meanwhile the end then
-- comes before the beginning, and nothing boots for it.
SELECT m.guid, m.delivery_id
FROM missed_deliveries m LEFT JOIN redeliveries r USING (guid)
WHERE NOT EXISTS (SELECT FROM deliveries d WHERE d.guid = m.guid)
  AND (r.guid IS NULL
       OR (r.attempts < $1
           AND r.asked_at + make_interval(secs => $2::double precision * 2 ^ r.attempts) <= clock_timestamp()))
ORDER BY m.delivery_id DESC
LIMIT $3

-- name: note_asked
-- Before GitHub is asked: what comes of it was learned by repair, whatever becomes of us meanwhile.
INSERT INTO redeliveries (guid) VALUES ($1)
ON CONFLICT (guid) DO UPDATE SET attempts = redeliveries.attempts + 1, asked_at = clock_timestamp()

-- name: take_back
UPDATE redeliveries SET attempts = greatest(attempts - 1, 0) WHERE guid = $1

-- name: drop_old
DELETE FROM redeliveries WHERE asked_at < clock_timestamp() - make_interval(secs => $1::double precision)
