-- GitHub as it really behaves: many installations, deliveries that get lost, owners who must act.

-- Who signs the names of our runners: two deployments on one organisation never take each other's for theirs.
CREATE TABLE deployment (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    deployment_id text NOT NULL
);
INSERT INTO deployment (deployment_id) VALUES (substr(md5(gen_random_uuid()::text), 1, 4));

-- Where the App is installed, as payloads and GitHub's list of installations tell.
CREATE TABLE installations (
    installation_id bigint PRIMARY KEY,  -- GitHub's
    org_id bigint NOT NULL REFERENCES orgs,
    suspended boolean NOT NULL DEFAULT false,
    removed boolean NOT NULL DEFAULT false,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    listed_at timestamptz  -- when its repositories were last listed
);
CREATE INDEX installations_of_org ON installations (org_id);

-- What GitHub refuses us and whose turn it is; gone with the first call that succeeds. Scope '' is all of it.
CREATE TABLE forge_problems (
    installation_id bigint NOT NULL,
    scope text NOT NULL DEFAULT '',  -- '', or the name of one repository
    task text NOT NULL CHECK (task IN ('any', 'register', 'read')),  -- what it keeps us from; only `read`: no machine waits
    kind text NOT NULL,              -- model/forge.py
    said text NOT NULL,              -- GitHub's own words
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    retry_at timestamptz NOT NULL,
    probed_at timestamptz,           -- when a machine was last granted to try whether it still stands
    PRIMARY KEY (installation_id, scope, task)
);

-- One process at a time does what costs calls to GitHub.
CREATE TABLE duties (
    name text PRIMARY KEY,
    holder text NOT NULL,
    until timestamptz NOT NULL,
    done_at timestamptz,
    notes jsonb  -- what the next round must know: where the last one stopped
);

-- Deliveries that GitHub was asked to send again: what they tell was learned by repair.
CREATE TABLE redeliveries (
    guid text PRIMARY KEY,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 1
);

-- Deliveries that GitHub lists as failed and that never came: to be asked for, until they come or are given up.
CREATE TABLE missed_deliveries (
    guid text PRIMARY KEY,
    delivery_id bigint NOT NULL,  -- GitHub's newest attempt at it: what can be asked for again
    delivered_at timestamptz NOT NULL
);

ALTER TABLE orgs
    ADD COLUMN max_machines integer CHECK (max_machines >= 0),  -- at once; null: no limit but the hosts'
    ADD COLUMN max_cpus integer CHECK (max_cpus >= 0),          -- at once, over all its machines
    ADD COLUMN runner_group_id bigint;                          -- null: NIMBUS_RUNNER_GROUP_ID

-- An org's own words for a shape. One alias may have its own cap.
CREATE TABLE label_aliases (
    org_id bigint NOT NULL REFERENCES orgs,
    alias text NOT NULL CHECK (alias = lower(alias)),
    shape jsonb NOT NULL,
    arch text NOT NULL DEFAULT 'x64' CHECK (arch IN ('x64', 'arm64')),
    image text,
    max_machines integer CHECK (max_machines >= 0),
    PRIMARY KEY (org_id, alias)
);

ALTER TABLE repos
    ADD COLUMN installation_id bigint,
    ADD COLUMN archived boolean NOT NULL DEFAULT false,
    ADD COLUMN active_at timestamptz,  -- when it last told of a job, or was pushed to
    ADD COLUMN polled_at timestamptz;

ALTER TABLE jobs
    ADD COLUMN repaired_by text CHECK (repaired_by IN ('redelivery', 'poll')),  -- a state of it came by repair, not by webhook
    ADD COLUMN refusal text,     -- why no machine is made for it: its labels, in words for their author
    ADD COLUMN checked_at timestamptz;  -- when GitHub was last asked about it

-- `labels` is what GitHub matches; `host_labels` what a host must offer: without those that only name a size.
ALTER TABLE machines
    ADD COLUMN host_labels text[],
    ADD COLUMN arch text NOT NULL DEFAULT 'x64' CHECK (arch IN ('x64', 'arm64')),
    ADD COLUMN alias text,
    ADD COLUMN runner_fence bigint,  -- of the lease that runner_name belongs to: only the newest lease's runner counts
    ADD COLUMN wasted_at timestamptz,  -- its runner served another label set's job, or none in time: such a loop has a limit
    ADD COLUMN registered_at timestamptz;
UPDATE machines SET host_labels = labels;
UPDATE machines SET runner_fence = fence WHERE runner_name = format('nimbus-%s-%s', machine_id, fence);
UPDATE machines SET registered_at = clock_timestamp() WHERE runner_id > 0;
ALTER TABLE machines ALTER COLUMN host_labels SET NOT NULL, ALTER COLUMN host_labels SET DEFAULT '{}';

CREATE INDEX jobs_open_github ON jobs (org_id, labels) WHERE source = 'github' AND state = 'queued';
CREATE INDEX jobs_open_of_repo ON jobs (repo_id) WHERE state IN ('waiting', 'queued', 'in_progress');
CREATE INDEX repos_of_installation ON repos (installation_id) WHERE NOT archived;
CREATE INDEX deliveries_settled ON deliveries (received_at) WHERE state IN ('processed', 'ignored');

-- When a delivery may be worked on next: whoever takes one moves it on, so that nobody else does at the same time.
ALTER TABLE deliveries ADD COLUMN due_at timestamptz NOT NULL DEFAULT clock_timestamp();

-- What an agent last offered, so that a job can say why no host takes it. Labels null: it has not asked for work yet.
ALTER TABLE agents
    ADD COLUMN labels text[],
    ADD COLUMN arch text NOT NULL DEFAULT 'x64' CHECK (arch IN ('x64', 'arm64'));

-- What granting looks at: whose turn it is, and how much each org holds already.
CREATE INDEX machines_queued_of_org ON machines (org_id, machine_id) WHERE state = 'queued';
CREATE INDEX machines_held ON machines (org_id) WHERE state IN ('leased', 'running');
-- And what counting a label set's demand looks at, however long the history.
CREATE INDEX machines_open_of_set ON machines (org_id, labels) WHERE state IN ('queued', 'leased', 'running');
CREATE INDEX machines_with_runner_ended ON machines (finished_at) WHERE runner_name IS NOT NULL;
CREATE INDEX machines_jobless ON machines (org_id, finished_at) WHERE job_id IS NULL AND finished_at IS NOT NULL;
CREATE INDEX machines_wasted ON machines (org_id, wasted_at) WHERE wasted_at IS NOT NULL;
CREATE INDEX jobs_by_age ON jobs (org_id, queued_at) WHERE source = 'github';
