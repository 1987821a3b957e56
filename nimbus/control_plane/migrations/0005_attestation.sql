-- What the holder of a machine request's last lease booted from, by content: told with its end.
ALTER TABLE machines ADD COLUMN attestation jsonb;
