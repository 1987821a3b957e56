-- name: lock_keys
-- One process at a time changes keys; whoever waits then sees what it did.
SELECT pg_advisory_xact_lock(hashtextextended('nimbus signing keys', 0))

-- name: read_keys
-- Those that are over, too, for whoever wants to know; they hold no private half.
SELECT kid, purpose, private_pem, public_x,
       extract(epoch FROM signs_from)::double precision AS signs_from_s,
       extract(epoch FROM accepted_until)::double precision AS accepted_until_s,
       revoked_at IS NOT NULL AS revoked,
       retired_at IS NOT NULL AS retired,
       extract(epoch FROM clock_timestamp())::double precision AS now_s
FROM signing_keys ORDER BY retired_at DESC NULLS FIRST, signs_from DESC, kid LIMIT 200

-- name: publish_key
INSERT INTO signing_keys (kid, purpose, private_pem, public_x, signs_from)
VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))

-- name: end_signing
-- What signs now does so for $2 seconds more, and is accepted for $3 more after that. The key of a release that knew no
-- families (its public half is still to be taken from the private one) has signed for all of them: $4 then.
UPDATE signing_keys
SET accepted_until = clock_timestamp() + make_interval(
    secs => $2::double precision + CASE WHEN public_x IS NULL THEN $4::double precision ELSE $3::double precision END)
WHERE purpose = $1 AND accepted_until IS NULL AND revoked_at IS NULL AND signs_from <= clock_timestamp()

-- name: go_on_signing
-- Its successor is no more: it signs until there is another.
UPDATE signing_keys SET accepted_until = NULL WHERE kid = $1

-- name: sign_now
UPDATE signing_keys SET signs_from = clock_timestamp() WHERE kid = $1

-- name: revoke_key
UPDATE signing_keys SET revoked_at = clock_timestamp(), private_pem = NULL, public_x = $2 WHERE kid = $1

-- name: keep_public_half
UPDATE signing_keys SET private_pem = NULL, public_x = $2 WHERE kid = $1

-- name: retire_keys
-- Nothing that they signed can live any more.
UPDATE signing_keys SET retired_at = clock_timestamp(), private_pem = NULL
WHERE retired_at IS NULL AND public_x IS NOT NULL AND (accepted_until <= clock_timestamp() OR revoked_at IS NOT NULL)

