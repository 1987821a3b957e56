-- Whether the holder of a machine request's last lease has ever renewed it: a grant may be lost on its way.
ALTER TABLE machines ADD COLUMN answered boolean NOT NULL DEFAULT true;
