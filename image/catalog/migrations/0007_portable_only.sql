-- Whether the last run found that a target takes portable streams only: it never
-- gets steps of builds.
ALTER TABLE target ADD COLUMN portable_only INTEGER NOT NULL DEFAULT 0;
