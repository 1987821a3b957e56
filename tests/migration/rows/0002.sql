UPDATE machines SET usage = '{"cpu_ms": 1500, "memory_bytes": 100000}', usage_at = now() WHERE machine_id = 3;
UPDATE machines SET failures = 1 WHERE machine_id = 5;
INSERT INTO machine_events (machine_id, state_from, state_to, event, fence, agent_id, told_by)
    VALUES (1, 'queued', 'leased', 'lease', 1, 'host-2', 'agent'),
           (1, 'leased', 'queued', 'expire', 1, 'host-2', 'clock');
INSERT INTO clock_sights (boot_id, clock, before_s, after_s) VALUES ('boot-of-a-plane', now(), 10.0, 10.1);
