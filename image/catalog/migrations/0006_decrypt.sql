-- Whether snapshots that are encrypted in the store may go to a target in the clear.
ALTER TABLE target ADD COLUMN decrypt INTEGER NOT NULL DEFAULT 0;
