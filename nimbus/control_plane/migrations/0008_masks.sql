-- What an org registered to be hidden in its jobs' output, for the log pipeline's second net.

-- Sealed (AES-GCM) under a key derived from NIMBUS_JWT_SECRET; `kid` says which. The sizes are told without opening.
CREATE TABLE org_masks (
    org_id bigint NOT NULL REFERENCES orgs,
    name text NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    kid text NOT NULL,
    sealed bytea NOT NULL,
    size_bytes integer NOT NULL CHECK (size_bytes > 0),
    lines integer NOT NULL CHECK (lines > 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, name)
);
CREATE INDEX org_masks_kid ON org_masks (kid);  -- which rows are yet to be sealed anew after a rotation
