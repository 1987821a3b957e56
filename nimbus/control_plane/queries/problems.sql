-- name: note
-- `since` begins anew where GitHub refuses for another reason than before.
INSERT INTO forge_problems (installation_id, scope, task, kind, said, retry_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp() + make_interval(secs => $6::double precision))
ON CONFLICT (installation_id, scope, task) DO UPDATE
SET kind = excluded.kind,
    said = excluded.said,
    retry_at = excluded.retry_at,
    since = CASE WHEN forge_problems.kind = excluded.kind THEN forge_problems.since ELSE excluded.since END

-- name: clear
-- What worked for one repository says as much of the whole installation.
DELETE FROM forge_problems WHERE installation_id = $1 AND scope IN ('', $2) AND task IN ('any', $3)

-- name: retry_now
UPDATE forge_problems SET retry_at = clock_timestamp(), probed_at = NULL WHERE installation_id = $1

-- name: blocking
-- What keeps a runner from being registered, and for how long it is not tried again: the one that lasts longest.
SELECT kind, said, scope, extract(epoch FROM retry_at - clock_timestamp())::double precision AS retry_after_s
FROM forge_problems
WHERE installation_id = $1 AND scope IN ('', $2) AND task <> 'read' AND retry_at > clock_timestamp()
ORDER BY retry_at DESC
LIMIT 1

-- name: forget_stale
-- Nobody has asked GitHub about it for so long: the repository is gone, or nothing of it waits any more.
DELETE FROM forge_problems WHERE retry_at < clock_timestamp() - make_interval(secs => $1::double precision)

-- name: count
SELECT kind, count(*) AS problems FROM forge_problems GROUP BY kind
