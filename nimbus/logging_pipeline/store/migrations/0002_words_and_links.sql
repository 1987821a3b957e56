-- Words become findable in a whole org's output, and links say which job a machine ran.
--
-- `words` is a Bloom filter of the words (runs of letters and digits, in lower case) of each 8192 rows: a search for
-- whole words reads only the granules that may hold them. It only ever skips: rows that were stored before it, and
-- parts for which it is not built yet, are found without it. Statements that use it say hasToken(lower(message), ...).
-- A text index finds the same in the same time, but takes as much disk as the text itself (decision 0033).
ALTER TABLE {database}.{table}
    ADD INDEX IF NOT EXISTS words lower(message) TYPE tokenbf_v1(32768, 4, 0) GRANULARITY 1;

-- For the rows that are there; the server does it behind our back and keeps what is done across restarts.
ALTER TABLE {database}.{table} MATERIALIZE INDEX words;

-- Rows leave one by one, as the retention says, not with the last of their month; parts are written anew for that
-- once a day, not every four hours.
ALTER TABLE {database}.{table} MODIFY SETTING merge_with_ttl_timeout = 86400;

-- Which job a machine ran under a fence, as the control plane told it; one row for each machine and fence. A runner
-- has no job yet when it begins to print: rows from before have 0 in job_id and repo_id, and repo-wide readers find
-- them by this table. Links stay a month longer than the rows, because output may go on after the link.
CREATE TABLE IF NOT EXISTS {database}.{table}_links (
    org_id      UInt64,
    repo_id     UInt64,
    job_id      UInt64,
    attempt     UInt16,
    machine_id  UInt64,
    fence       UInt64,
    linked_at   DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (org_id, repo_id, job_id, machine_id, fence)
TTL toDateTime(linked_at) + toIntervalDay({links_days})
SETTINGS non_replicated_deduplication_window = 1000;
