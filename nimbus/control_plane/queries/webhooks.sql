-- name: store
-- The inbox. The first delivery of a GUID makes the row; a redelivery finds it.
INSERT INTO deliveries (guid, event, action, body, installation_id, received_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp())
ON CONFLICT (guid) DO NOTHING

-- name: lock
SELECT event, body, state, received_at FROM deliveries WHERE guid = $1 FOR UPDATE

-- name: settle
UPDATE deliveries
SET state = $2, attempts = attempts + 1, processed_at = clock_timestamp(), error = NULL
WHERE guid = $1

-- name: fail
UPDATE deliveries SET state = 'failed', attempts = attempts + 1, error = $2
WHERE guid = $1 AND state IN ('received', 'failed')

-- name: unfinished
-- Later and later after each attempt; a delivery that was only just stored is being worked on.
SELECT guid FROM deliveries
WHERE state IN ('received', 'failed') AND attempts < $1
  AND received_at < clock_timestamp() - make_interval(secs => $2::double precision * (1 + attempts * attempts))
ORDER BY received_at
LIMIT 100
