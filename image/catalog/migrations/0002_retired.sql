-- What the catalog does not name any more, but the store still holds or may
-- hold: it is destroyed as soon as nothing depends on it.

CREATE TABLE retired (
    id     TEXT PRIMARY KEY,                   -- of a volume or a snapshot
    kind   TEXT NOT NULL,                      -- volume, snapshot
    what   TEXT NOT NULL,                      -- what it was, for people
    at     INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT ''            -- why it could not be destroyed yet; '' if nobody has tried
) STRICT;
