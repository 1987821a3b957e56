-- name: lock_keys
LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE

-- name: accepted_keys
SELECT private_pem FROM signing_keys WHERE retired_at IS NULL ORDER BY created_at DESC, kid

-- name: insert_key
INSERT INTO signing_keys (kid, private_pem) VALUES ($1, $2)
