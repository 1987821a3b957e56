-- name: trace
SELECT event_id AS id, round(extract(epoch FROM at) * 1000)::bigint AS at_ms, machine_id, event, state_from, state_to,
       fence, agent_id, told_by
FROM machine_events
WHERE event_id > $1
ORDER BY event_id
LIMIT $2
