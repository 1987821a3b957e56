-- Which start of an agent enrolled last: a late copy of an earlier enrolment gives up nothing that was leased since.
ALTER TABLE agents ADD COLUMN start bigint NOT NULL DEFAULT 0;
