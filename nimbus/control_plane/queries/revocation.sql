-- name: lease_standing
-- Whether this very lease is held, by Postgres' clock alone. While granting pauses, a deadline that is past tells nothing.
SELECT org_id,
       fence = $2 AND state IN ('leased', 'running')
           AND (deadline > clock_timestamp()
                OR coalesce((SELECT grants_paused_until > clock_timestamp() FROM database_watch), false)) AS alive,
       (extract(epoch FROM deadline) * 1000)::bigint AS until_ms,
       extract(epoch FROM deadline - clock_timestamp())::double precision AS left_s
FROM machines WHERE machine_id = $1

-- name: denied
SELECT jti FROM revoked_tokens WHERE expires_at IS NULL OR expires_at > clock_timestamp()

-- name: deny
-- Said again, the later of the two ends counts: nobody shortens what another wanted.
INSERT INTO revoked_tokens (jti, expires_at, revoked_by)
VALUES ($1, to_timestamp($2::double precision), $3)
ON CONFLICT (jti) DO UPDATE SET expires_at = CASE
    WHEN revoked_tokens.expires_at IS NULL OR excluded.expires_at IS NULL THEN NULL
    ELSE greatest(revoked_tokens.expires_at, excluded.expires_at) END

-- name: forget_expired
DELETE FROM revoked_tokens WHERE expires_at < clock_timestamp()
