-- Whether somebody may have written to a tree's head since it was equal to its
-- base: only then is it compared with that, which takes the longer the larger
-- the tree is.
ALTER TABLE tree ADD COLUMN touched INTEGER NOT NULL DEFAULT 1;
