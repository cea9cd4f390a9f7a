-- Replication. A site is one primary, which writes, and its replicas, which
-- hold the same and refuse changes.

CREATE TABLE site (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    id        TEXT NOT NULL,                   -- the same on the primary and its replicas
    epoch     INTEGER NOT NULL,                -- one more with each takeover: of two primaries the higher one is right
    role      TEXT NOT NULL,                   -- primary, replica, superseded (a primary that another took over from)
    since     INTEGER NOT NULL,                -- when it got the role
    source    TEXT NOT NULL DEFAULT '',        -- the host that it follows, or that took over
    as_of     INTEGER NOT NULL DEFAULT 0,      -- of a replica: the moment at the primary that it holds the catalog of
    announced TEXT NOT NULL DEFAULT '{}'       -- JSON: where the channels are to point when the transfer under way is done
) STRICT;
INSERT INTO site (one, id, epoch, role, since)
VALUES (1, lower(hex(randomblob(16))), 1, 'primary', CAST(unixepoch('subsec') * 1000 AS INTEGER));

-- The servers that this one replicates to. Of this server alone.
CREATE TABLE target (
    name     TEXT PRIMARY KEY,
    url      TEXT NOT NULL,
    rate     INTEGER NOT NULL DEFAULT 0,       -- at most so many bytes per second; 0 = no limit
    portable INTEGER NOT NULL DEFAULT 0,       -- send portable streams only
    added    INTEGER NOT NULL,
    tried    INTEGER NOT NULL DEFAULT 0,       -- when the last run began
    done     INTEGER NOT NULL DEFAULT 0,       -- when the last run that succeeded ended
    as_of    INTEGER NOT NULL DEFAULT 0,       -- the moment that the target holds the catalog of
    error    TEXT NOT NULL DEFAULT '',         -- why the last run failed
    sent     INTEGER NOT NULL DEFAULT 0,       -- bytes that the last run sent
    held     TEXT NOT NULL DEFAULT '[]'        -- JSON: the IDs of what the target had after the last run
) STRICT;

-- Snapshots that must stay since the next difference to a target begins there.
CREATE TABLE hold (
    target   TEXT NOT NULL REFERENCES target (name) ON DELETE CASCADE,
    snapshot TEXT NOT NULL REFERENCES snapshot (id),
    at       INTEGER NOT NULL,
    PRIMARY KEY (target, snapshot)
) STRICT;
CREATE INDEX hold_snapshot ON hold (snapshot);
