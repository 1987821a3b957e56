UPDATE orgs SET weight = 200 WHERE org_id = 10;
UPDATE label_aliases SET priority = 5 WHERE org_id = 10;
UPDATE jobs SET priority = 5, told_by = 'github:webhook' WHERE job_id = 103;
UPDATE jobs SET state = 'queued', cause = 'queued anew' WHERE job_id = 103;
INSERT INTO offers (machine_id, fence, until) VALUES (1, 1, now());
INSERT INTO revoked_tokens (jti, expires_at, revoked_by) VALUES ('token-1', now() + interval '1 h', 'somebody');
UPDATE agents SET free_cpus = 4, slots = 8, free_slots = 7, vmm = 'qemu', pool = '{}', heartbeat_at = now(), doing = 'working'
WHERE agent_id = 'host-1';
INSERT INTO signing_keys (kid, purpose, public_x, revoked_at)
    VALUES ('kid-gone', 'machine', '11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo', now());
