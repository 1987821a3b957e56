INSERT INTO installations (installation_id, org_id) VALUES (77, 10);
INSERT INTO forge_problems (installation_id, kind, said, retry_at, task)
    VALUES (77, 'suspended', 'This installation has been suspended', now() + interval '5 min', 'any');
INSERT INTO duties (name, holder, until, done_at, notes)
    VALUES ('redelivery', 'somebody', now(), now(), '{"watermark": "2026-11-21T20:00:00+00:00"}');
INSERT INTO redeliveries (guid) VALUES ('guid-received');
INSERT INTO missed_deliveries (guid, delivery_id, delivered_at) VALUES ('guid-missed', 12, now());
UPDATE orgs SET max_machines = 5, max_cpus = 20, runner_group_id = 3 WHERE org_id = 10;
INSERT INTO label_aliases (org_id, alias, shape, arch, image, max_machines)
    VALUES (10, 'large', '{"cpus": 8, "mem_mib": 16384, "disk_mib": 20480}', 'x64', NULL, 2);
UPDATE jobs SET repaired_by = 'poll', checked_at = now() WHERE job_id = 104;
UPDATE jobs SET refusal = 'no such size' WHERE job_id = 103;
UPDATE machines SET runner_fence = 1, registered_at = now() WHERE machine_id = 3;
UPDATE agents SET labels = '{nimbus}' WHERE agent_id = 'host-1';
