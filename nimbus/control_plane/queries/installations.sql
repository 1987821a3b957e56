-- name: keep_account
INSERT INTO orgs (forge, forge_id, login) VALUES ('github', $1, $2)
ON CONFLICT (forge, forge_id) DO UPDATE SET login = excluded.login
RETURNING org_id

-- name: now
SELECT clock_timestamp()

-- name: keep_installation
-- $5: nothing newer than this is overwritten, by a list that was asked for before a webhook came. Null: now.
-- A row that is not returned was newer.
INSERT INTO installations (installation_id, org_id, suspended, removed) VALUES ($1, $2, $3, $4)
ON CONFLICT (installation_id) DO UPDATE
SET org_id = excluded.org_id, suspended = excluded.suspended, removed = excluded.removed, seen_at = clock_timestamp()
WHERE $5::timestamptz IS NULL OR installations.seen_at <= $5
RETURNING installation_id

-- name: served
-- Whether it was in use before, to see it come back.
SELECT NOT suspended AND NOT removed FROM installations WHERE installation_id = $1 FOR UPDATE

-- name: see_installation
-- An event proves that it was there, not how it stands: that is told by its own events and by the list, and so is
-- whose it is. Whether it is this org's; one never changes hands, so an event that says otherwise is not followed.
WITH seen AS (
    INSERT INTO installations (installation_id, org_id) VALUES ($1, $2)
    ON CONFLICT (installation_id) DO NOTHING
    RETURNING true
)
SELECT EXISTS (SELECT FROM seen) OR EXISTS (SELECT FROM installations WHERE installation_id = $1 AND org_id = $2)

-- name: remove_unlisted
UPDATE installations SET removed = true, seen_at = clock_timestamp()
WHERE NOT removed AND seen_at <= $1 AND NOT installation_id = ANY ($2::bigint[])
RETURNING installation_id

-- name: leave_removed
-- An App that is installed again has a new id. What GitHub refused the old one says nothing any more, and machines that
-- nobody has taken yet are the new one's. One that is being changed at this moment is asked about when it is granted.
WITH serving AS (
    SELECT installation_id FROM installations
    WHERE org_id = $1 AND NOT removed AND NOT suspended
    ORDER BY installation_id DESC LIMIT 1
), gone AS (
    SELECT installation_id FROM installations WHERE org_id = $1 AND removed AND EXISTS (SELECT FROM serving)
), forgotten AS (
    DELETE FROM forge_problems WHERE installation_id IN (SELECT installation_id FROM gone)
), moving AS (
    SELECT machine_id FROM machines
    WHERE org_id = $1 AND state = 'queued' AND installation_id IN (SELECT installation_id FROM gone)
    ORDER BY machine_id
    FOR UPDATE SKIP LOCKED
)
UPDATE machines SET installation_id = serving.installation_id
FROM moving, serving
WHERE machines.machine_id = moving.machine_id

-- name: serving_installation
-- The newest that is not removed; a suspended one only where there is no other, for its problem to be told. The
-- default serves accounts of which nothing better is known, unless it is known to serve another, or to be gone.
SELECT coalesce(
    (SELECT installation_id FROM installations
     WHERE org_id = $1 AND NOT removed
     ORDER BY suspended, installation_id DESC LIMIT 1),
    (SELECT $2::bigint
     WHERE NOT EXISTS (SELECT FROM installations WHERE installation_id = $2 AND (removed OR org_id <> $1))))

-- name: keep_repos
-- A push may have woken it: a job that nobody told us of may come of that. Rows that say the same are not written.
INSERT INTO repos (org_id, forge_id, name, private, installation_id, archived, active_at)
SELECT $1, listed.forge_id, listed.name, listed.private, $2, listed.archived,
       least(listed.pushed_at, clock_timestamp())
FROM unnest($3::bigint[], $4::text[], $5::boolean[], $6::boolean[], $7::timestamptz[])
     AS listed (forge_id, name, private, archived, pushed_at)
ON CONFLICT (org_id, forge_id) DO UPDATE
SET name = excluded.name, private = excluded.private, installation_id = excluded.installation_id,
    archived = excluded.archived, active_at = greatest(repos.active_at, excluded.active_at)
WHERE (repos.name, repos.private, repos.installation_id, repos.archived)
      IS DISTINCT FROM (excluded.name, excluded.private, excluded.installation_id, excluded.archived)
   OR excluded.active_at > coalesce(repos.active_at, '-infinity')

-- name: leave_unlisted
UPDATE repos SET installation_id = NULL WHERE installation_id = $1 AND NOT forge_id = ANY ($2::bigint[])

-- name: note_listed
UPDATE installations SET listed_at = clock_timestamp() WHERE installation_id = $1
