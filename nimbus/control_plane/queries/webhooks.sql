-- name: store
-- Deliveries of one group, in the order in which they came. The first of a GUID makes the row; a redelivery finds it.
INSERT INTO deliveries (guid, event, action, body, installation_id, received_at, due_at)
SELECT guid, event, action, body, installation_id, clock_timestamp(), clock_timestamp()
FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[])
     AS came (guid, event, action, body, installation_id)
ON CONFLICT (guid) DO NOTHING
RETURNING guid

-- name: revive
-- One whose processing failed is as good as new when GitHub sends it again.
UPDATE deliveries SET state = 'received', attempts = 0, due_at = clock_timestamp()
WHERE guid = ANY ($1::text[]) AND state = 'failed'
RETURNING guid

-- name: states
SELECT guid, state FROM deliveries WHERE guid = ANY ($1::text[])

-- name: next
-- The next ones that are due. Large bodies are left where they are: a hundred of them would not fit into memory.
SELECT guid, event, CASE WHEN octet_length(body) <= $3 THEN body END AS body
FROM deliveries
WHERE state IN ('received', 'failed') AND attempts < $1 AND due_at <= clock_timestamp()
ORDER BY received_at
LIMIT $2
FOR UPDATE SKIP LOCKED

-- name: ignore
UPDATE deliveries
SET state = 'ignored', attempts = attempts + 1, processed_at = clock_timestamp(), error = NULL
WHERE guid = ANY ($1::text[])

-- name: claim
-- For this process alone until `due_at`. The attempt counts now: a delivery in whose midst processes die must come to
-- an end too.
UPDATE deliveries
SET attempts = attempts + 1,
    due_at = clock_timestamp() + make_interval(secs => $2::double precision + $3::double precision * attempts ^ 2)
WHERE guid = ANY ($1::text[])

-- name: release
-- Claimed and not begun: this process is told to stop, and another need not wait for the claim's end.
UPDATE deliveries SET attempts = attempts - 1, due_at = clock_timestamp()
WHERE guid = ANY ($1::text[]) AND state IN ('received', 'failed') AND attempts > 0

-- name: lock
SELECT d.event, d.body, d.state, d.received_at, r.guid IS NOT NULL AS asked_again
FROM deliveries d LEFT JOIN redeliveries r USING (guid)
WHERE d.guid = $1
FOR UPDATE OF d

-- name: settle
UPDATE deliveries SET state = $2, processed_at = clock_timestamp(), error = NULL WHERE guid = $1

-- name: fail
-- Tried again later and later, until it is given up.
UPDATE deliveries
SET state = 'failed', error = $2,
    due_at = clock_timestamp() + make_interval(secs => $3::double precision * attempts ^ 2)
WHERE guid = $1 AND state IN ('received', 'failed')
RETURNING attempts

-- name: give_up
-- Tried as often as any, and each time its process ended first.
UPDATE deliveries
SET state = 'failed', error = 'each time it was processed the process ended, or the database was away'
WHERE state = 'received' AND attempts >= $1 AND due_at <= clock_timestamp()
RETURNING guid

-- name: forget
-- A small batch of what nobody asks about any more.
DELETE FROM deliveries
WHERE guid IN (
    SELECT guid FROM deliveries
    WHERE state IN ('processed', 'ignored') AND received_at < clock_timestamp() - make_interval(secs => $1)
    ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED)

-- name: forget_failed
DELETE FROM deliveries
WHERE guid IN (
    SELECT guid FROM deliveries
    WHERE state IN ('received', 'failed') AND attempts >= $3
      AND received_at < clock_timestamp() - make_interval(secs => $1)
    ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED)

-- name: unfinished
-- What waits, and what was given up.
SELECT count(*) FILTER (WHERE state = 'received') AS received,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       coalesce(extract(epoch FROM clock_timestamp() - min(received_at) FILTER (WHERE attempts < $1)), 0)::float8
           AS oldest_s
FROM deliveries
WHERE state IN ('received', 'failed')
