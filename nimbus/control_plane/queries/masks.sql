-- name: list_masks
SELECT name, size_bytes, lines, created_at, changed_at FROM org_masks WHERE org_id = $1 ORDER BY name

-- name: count_others
SELECT count(*) AS masks, coalesce(sum(size_bytes), 0) AS size_bytes, coalesce(sum(lines), 0) AS lines
FROM org_masks WHERE org_id = $1 AND name <> $2

-- name: keep_mask
INSERT INTO org_masks (org_id, name, kid, sealed, size_bytes, lines)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (org_id, name) DO UPDATE
SET kid = excluded.kid, sealed = excluded.sealed, size_bytes = excluded.size_bytes, lines = excluded.lines,
    changed_at = clock_timestamp()
RETURNING name, size_bytes, lines, created_at, changed_at

-- name: remove_mask
DELETE FROM org_masks WHERE org_id = $1 AND name = $2 RETURNING true

-- name: read_sealed
SELECT name, kid, sealed FROM org_masks WHERE org_id = $1 ORDER BY name

-- name: seal_anew
-- Only over what was read: somebody may have given another value meanwhile.
UPDATE org_masks SET kid = $4, sealed = $5 WHERE org_id = $1 AND name = $2 AND sealed = $3

-- name: find_due
-- The orgs that have values under another key than these.
SELECT DISTINCT org_id FROM org_masks WHERE NOT kid = ANY ($1::text[]) ORDER BY org_id
