-- The one table of job output. {database}, {table} and {retention_days} are filled in by migrate.py, which
-- lets only plain identifiers and whole numbers through.
--
-- The columns of the published schema are kept. What differs, and why:
-- * no Nullable in the key (servers refuse it today); 0 stands for "not known", no id of ours is 0
-- * the key is org + machine + fence + seq: a runner is not bound to a job when it starts to print, and the
--   tenant comes first so that one org's reads never touch another's granules. The job's machines come from
--   the control plane at query time.
-- * seq numbers the lines of one machine and fence from 0 without a gap: it is the order, the cursor and what
--   makes a repeated line recognisable. Readers say LIMIT 1 BY; merges drop the repetition from the disk.
CREATE DATABASE IF NOT EXISTS {database};

CREATE TABLE IF NOT EXISTS {database}.{table} (
    org_id      UInt64,
    machine_id  UInt64,
    fence       UInt64,
    seq         UInt64 CODEC(Delta, ZSTD(1)),
    job_id      UInt64 DEFAULT 0,
    repo_id     UInt64 DEFAULT 0,
    attempt     UInt16 DEFAULT 0,
    step        UInt16 DEFAULT 0,
    agent_id    LowCardinality(String),
    stream      LowCardinality(String),
    level       LowCardinality(String),
    message     String CODEC(ZSTD(1)),
    ts          DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (org_id, machine_id, fence, seq)
TTL toDateTime(ts) + toIntervalDay({retention_days})
SETTINGS non_replicated_deduplication_window = 1000;
