-- name: list_aliases
SELECT alias, shape, arch, image, max_machines, priority FROM label_aliases WHERE org_id = $1 ORDER BY alias

-- name: count_others
SELECT count(*) FROM label_aliases WHERE org_id = $1 AND alias <> $2

-- name: keep_alias
INSERT INTO label_aliases (org_id, alias, shape, arch, image, max_machines, priority)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (org_id, alias) DO UPDATE
SET shape = excluded.shape, arch = excluded.arch, image = excluded.image, max_machines = excluded.max_machines,
    priority = excluded.priority

-- name: remove_alias
DELETE FROM label_aliases WHERE org_id = $1 AND alias = $2 RETURNING true
