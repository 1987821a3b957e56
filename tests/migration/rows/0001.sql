-- A deployment at work under the first release: jobs of both sources in every state, machines in every state.
INSERT INTO orgs (org_id, forge, forge_id, login) OVERRIDING SYSTEM VALUE VALUES (10, 'github', 501, 'octo-org');
INSERT INTO repos (repo_id, org_id, forge_id, name, private) OVERRIDING SYSTEM VALUE VALUES (20, 10, 601, 'hello', true);
INSERT INTO deliveries (guid, event, action, processed_at, body, state, attempts, error, installation_id) VALUES
    ('guid-received', 'workflow_job', 'queued', NULL, '\x7b7d', 'received', 0, NULL, 77),
    ('guid-processed', 'workflow_job', 'queued', now(), '\x7b7d', 'processed', 1, NULL, 77),
    ('guid-failed', 'workflow_job', 'queued', NULL, '\x7b7d', 'failed', 10, 'Refused: no', 77),
    ('guid-ignored', 'workflow_job', 'queued', now(), '\x7b7d', 'ignored', 1, NULL, 77);
INSERT INTO jobs (job_id, org_id, repo_id, source, forge_job_id, run_id, run_attempt, name, workflow_name, labels, state,
                  conclusion, runner_name, html_url, queued_at, started_at, completed_at, cause, learned_by, command,
                  idempotency_key) OVERRIDING SYSTEM VALUE VALUES
    (101, 1, NULL, 'api', NULL, NULL, NULL, 'waits', NULL, '{}', 'queued', NULL, NULL, NULL, now(), NULL, NULL, NULL,
     'api', '{"argv": ["true"], "env": {}, "cwd": "/", "user": "root", "timeout_s": null, "grace_s": 30.0}', 'key-1'),
    (102, 1, NULL, 'api', NULL, NULL, NULL, 'done', NULL, '{}', 'completed', 'success', NULL, NULL,
     now() - interval '1 h', now() - interval '59 min', now() - interval '58 min', NULL,
     'api', '{"argv": ["true"], "env": {}, "cwd": "/", "user": "root", "timeout_s": 60.0, "grace_s": 30.0}', NULL),
    (103, 10, 20, 'github', 9001, 10, 1, 'build', 'CI', '{nimbus}', 'queued', NULL, NULL, 'https://github.example/x',
     now(), NULL, NULL, NULL, 'webhook', NULL, NULL),
    (104, 10, 20, 'github', 9002, 10, 1, 'test', 'CI', '{nimbus}', 'in_progress', NULL, 'nimbus-3-1',
     'https://github.example/x', now() - interval '5 min', now() - interval '4 min', NULL, NULL, 'webhook', NULL, NULL),
    (105, 10, 20, 'github', 9003, 10, 1, 'gate', 'CI', '{nimbus}', 'waiting', NULL, NULL, 'https://github.example/x',
     now(), NULL, NULL, NULL, 'webhook', NULL, NULL),
    (106, 10, 20, 'github', 9004, 10, 1, 'lost', 'CI', '{nimbus}', 'lost', 'failure', 'nimbus-4-1',
     'https://github.example/x', now() - interval '2 h', now() - interval '119 min', now() - interval '1 h',
     'its host fell silent', 'webhook', NULL, NULL);
INSERT INTO machines (machine_id, org_id, kind, job_id, repo_id, labels, shape, image, command, state, fence, lease_id,
                      agent_id, leased_at, deadline, attempts, ending, exit_code, cause, phases, runner_name, runner_id,
                      installation_id, finished_at) OVERRIDING SYSTEM VALUE VALUES
    (1, 1, 'command', 101, NULL, '{}', '{"cpus": 1, "mem_mib": 256, "disk_mib": 2048}', 'base', '{"argv": ["true"]}',
     'queued', 1, NULL, NULL, NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (2, 1, 'command', 102, NULL, '{}', '{"cpus": 1, "mem_mib": 256, "disk_mib": 2048}', 'base', '{"argv": ["true"]}',
     'done', 1, gen_random_uuid(), 'host-1', now() - interval '59 min', NULL, 1, 'done', 0, NULL, '{"boot": 812.5}',
     NULL, NULL, NULL, now() - interval '58 min'),
    (3, 10, 'runner', 104, 20, '{nimbus}', '{"cpus": 2, "mem_mib": 4096, "disk_mib": 10240}', 'base', NULL,
     'running', 1, gen_random_uuid(), 'host-1', now() - interval '4 min', now() + interval '1 h', 1, NULL, NULL, NULL,
     NULL, 'nimbus-3-1', 55, 77, NULL),
    (4, 10, 'runner', 106, 20, '{nimbus}', '{"cpus": 2, "mem_mib": 4096, "disk_mib": 10240}', 'base', NULL,
     'lost', 1, NULL, 'host-2', now() - interval '119 min', NULL, 1, 'lost', NULL, 'its host fell silent', NULL,
     'nimbus-4-1', NULL, 77, now() - interval '1 h'),
    (5, 10, 'runner', NULL, 20, '{nimbus}', '{"cpus": 2, "mem_mib": 4096, "disk_mib": 10240}', 'base', NULL,
     'leased', 2, gen_random_uuid(), 'host-1', now(), now() + interval '5 min', 2, NULL, NULL, NULL, NULL, NULL, NULL, 77,
     NULL);
INSERT INTO machine_events (machine_id, state_from, state_to, event, cause, fence) VALUES
    (2, 'queued', 'leased', 'lease', NULL, 1), (2, 'leased', 'running', 'start', NULL, 1),
    (2, 'running', 'done', 'finish_ok', NULL, 1), (3, 'queued', 'leased', 'lease', NULL, 1),
    (3, 'leased', 'running', 'start', NULL, 1), (4, 'queued', 'leased', 'lease', NULL, 1),
    (4, 'leased', 'running', 'start', NULL, 1), (4, 'running', 'lost', 'lose', 'its host fell silent', 1),
    (5, 'queued', 'leased', 'lease', NULL, 1), (5, 'leased', 'queued', 'expire', 'its lease expired', 1),
    (5, 'queued', 'leased', 'lease', NULL, 2);
INSERT INTO agents (agent_id, version, boot_id, cpus, mem_mib) VALUES
    ('host-1', '0.1.0', 'boot-1', 8, 16384), ('host-2', '0.1.0', 'boot-2', 8, 16384);
SELECT setval(pg_get_serial_sequence('jobs', 'job_id'), 1000), setval(pg_get_serial_sequence('machines', 'machine_id'), 1000);
