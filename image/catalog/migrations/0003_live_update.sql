-- Live update: a running node takes further snapshots without a reboot. Each
-- row is an order to the agent of a session, and what became of it.

CREATE TABLE live_update (
    id       INTEGER PRIMARY KEY AUTOINCREMENT, -- the order's number: agents ask for those behind one
    session  TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    channel  TEXT NOT NULL DEFAULT '',         -- through which channel it was chosen; '' = pinned
    state    TEXT NOT NULL,                    -- ordered, taken, done, failed
    held     INTEGER NOT NULL,                 -- the session needs the snapshot until it ends
    reason   TEXT NOT NULL DEFAULT '',         -- why it failed
    notes    TEXT NOT NULL DEFAULT '[]',       -- JSON: what the agent has to say about it
    actor    TEXT NOT NULL,
    ordered  INTEGER NOT NULL,
    taken    INTEGER,                          -- when the agent was told
    answered INTEGER                           -- when it reported
) STRICT;
CREATE INDEX live_update_session ON live_update (session, id);
CREATE INDEX live_update_held ON live_update (snapshot) WHERE held = 1;
CREATE INDEX live_update_open ON live_update (id) WHERE state IN ('ordered', 'taken');

-- Whether the session's agent asks for orders; older ones do not.
ALTER TABLE session ADD COLUMN asks INTEGER NOT NULL DEFAULT 0;

ALTER TABLE node ADD COLUMN grp TEXT NOT NULL DEFAULT ''; -- a label for many nodes
