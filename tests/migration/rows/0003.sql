UPDATE agents SET start = 7 WHERE agent_id = 'host-1';
