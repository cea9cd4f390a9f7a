-- The first schema. Times are Unix milliseconds. IDs are 32 lowercase
-- hexadecimal digits. A row whose `deleted` is set is history: the object is
-- gone, but its name may be asked for (a file handle of a deleted snapshot is
-- answered STALE, not BADHANDLE).

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE tree (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    head        TEXT NOT NULL,                 -- the volume
    base        TEXT NOT NULL DEFAULT '',      -- the snapshot that the head last was equal to; '' if none
    next_number INTEGER NOT NULL DEFAULT 1,
    created     INTEGER NOT NULL,
    deleted     INTEGER
) STRICT;
CREATE UNIQUE INDEX tree_name ON tree (name) WHERE deleted IS NULL;

CREATE TABLE snapshot (
    id       TEXT PRIMARY KEY,
    tree     TEXT NOT NULL REFERENCES tree (id),
    number   INTEGER NOT NULL,
    name     TEXT NOT NULL DEFAULT '',
    phase    TEXT NOT NULL DEFAULT '',         -- the build's phase; '' if made by hand
    key      TEXT NOT NULL DEFAULT '',         -- hash of all that the phase used
    recipe   TEXT NOT NULL DEFAULT '',         -- where it came from: the recipe's name, or the source of an import
    parent   TEXT NOT NULL DEFAULT '',         -- the snapshot before it; '' if none
    complete INTEGER NOT NULL,                 -- made by hand, or the end of a build
    author   TEXT NOT NULL,
    message  TEXT NOT NULL DEFAULT '',
    created  INTEGER NOT NULL,
    deleted  INTEGER,
    UNIQUE (tree, number)
) STRICT;
CREATE INDEX snapshot_key ON snapshot (key) WHERE key <> '' AND deleted IS NULL;
CREATE UNIQUE INDEX snapshot_name ON snapshot (tree, name) WHERE name <> '' AND deleted IS NULL;

CREATE TABLE channel (
    name     TEXT PRIMARY KEY,
    snapshot TEXT NOT NULL REFERENCES snapshot (id),
    keep     INTEGER NOT NULL DEFAULT 5,       -- how many earlier snapshots stay protected for `channel rollback`
    changed  INTEGER NOT NULL
) STRICT;

CREATE TABLE channel_history (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    channel  TEXT NOT NULL,
    snapshot TEXT NOT NULL,                    -- what it points to from then on; '' if the channel was deleted
    previous TEXT NOT NULL DEFAULT '',
    action   TEXT NOT NULL,                    -- promote, rollback, delete
    actor    TEXT NOT NULL,
    message  TEXT NOT NULL DEFAULT '',
    at       INTEGER NOT NULL
) STRICT;
CREATE INDEX channel_history_channel ON channel_history (channel, id);

-- Who did what, when and why.
CREATE TABLE event (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    command TEXT NOT NULL,
    action  TEXT NOT NULL,                     -- promote, snapshot, delete, node-set, ...
    object  TEXT NOT NULL,                     -- ID or name of what it was done to
    text    TEXT NOT NULL,                     -- one line for people
    message TEXT NOT NULL DEFAULT ''           -- the user's --message
) STRICT;
CREATE INDEX event_object ON event (object, id);

-- What a process is about to do to the store. While the process lives nobody
-- touches what it names; when it is dead, whatever it names and the catalog
-- does not is left over.
CREATE TABLE intent (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    action    TEXT NOT NULL,
    volumes   TEXT NOT NULL,                   -- JSON: volumes made or destroyed
    snapshots TEXT NOT NULL,                   -- JSON: snapshots made or destroyed
    uses      TEXT NOT NULL,                   -- JSON: snapshots that must stay meanwhile
    actor     TEXT NOT NULL,
    command   TEXT NOT NULL,
    pid       INTEGER NOT NULL,
    started   INTEGER NOT NULL,                -- start time of the process, proc(5) stat field 22
    boot      TEXT NOT NULL,                   -- the machine's boot_id
    at        INTEGER NOT NULL
) STRICT;

CREATE TABLE network (
    name          TEXT PRIMARY KEY,
    subnet        TEXT NOT NULL,               -- 10.0.0.0/24
    range_first   TEXT NOT NULL DEFAULT '',
    range_last    TEXT NOT NULL DEFAULT '',
    router        TEXT NOT NULL DEFAULT '',
    dns           TEXT NOT NULL DEFAULT '[]',  -- JSON list of addresses
    domain        TEXT NOT NULL DEFAULT '',
    lease_seconds INTEGER NOT NULL DEFAULT 43200,
    mode          TEXT NOT NULL DEFAULT 'proxy', -- proxy, full, off
    channel       TEXT NOT NULL DEFAULT 'default', -- what an unknown machine boots; '' = nothing
    args          TEXT NOT NULL DEFAULT '',    -- kernel arguments for all machines of the network
    nfs_options   TEXT NOT NULL DEFAULT '',
    created       INTEGER NOT NULL
) STRICT;

CREATE TABLE node (
    mac        TEXT PRIMARY KEY,               -- aa:bb:cc:dd:ee:ff
    name       TEXT NOT NULL DEFAULT '',
    registered INTEGER NOT NULL,               -- 0: it asked once, and nobody has added it yet
    channel    TEXT NOT NULL DEFAULT '',       -- '' = the network's
    pin        TEXT NOT NULL DEFAULT '',       -- a snapshot; it wins over the channel
    address    TEXT NOT NULL DEFAULT '',       -- a fixed address; '' = from the range
    args       TEXT NOT NULL DEFAULT '',       -- kernel arguments
    network    TEXT NOT NULL DEFAULT '',       -- where it was last seen
    first_seen INTEGER,
    last_seen  INTEGER,
    created    INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX node_name ON node (name) WHERE name <> '';

CREATE TABLE session (
    id           TEXT PRIMARY KEY,
    mac          TEXT NOT NULL,
    network      TEXT NOT NULL DEFAULT '',
    snapshot     TEXT NOT NULL,                -- what it boots
    channel      TEXT NOT NULL DEFAULT '',     -- through which channel it was chosen; '' = pinned
    address      TEXT NOT NULL DEFAULT '',
    loader       TEXT NOT NULL DEFAULT '',     -- pxelinux, ipxe, grub
    opened       INTEGER NOT NULL,
    step         TEXT NOT NULL,                -- how far it got: config, kernel, initrd, root, up
    step_at      INTEGER NOT NULL,
    up_at        INTEGER,
    heard        INTEGER NOT NULL,             -- last sign of life, wall clock
    heard_clock  INTEGER NOT NULL,             -- the same in seconds of the served clock (see meta served_seconds)
    failed_units TEXT NOT NULL DEFAULT '[]',   -- JSON
    kernel       TEXT NOT NULL DEFAULT '',
    ended        INTEGER,
    end_reason   TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX session_live ON session (mac) WHERE ended IS NULL;
CREATE INDEX session_snapshot ON session (snapshot) WHERE ended IS NULL;
CREATE INDEX session_mac ON session (mac, opened);
CREATE INDEX session_address ON session (address, snapshot, opened);

CREATE TABLE lease (
    network  TEXT NOT NULL,
    mac      TEXT NOT NULL,
    address  TEXT NOT NULL,
    hostname TEXT NOT NULL DEFAULT '',
    state    TEXT NOT NULL,                    -- offered, bound, released, declined
    expires  INTEGER NOT NULL,
    PRIMARY KEY (network, mac, address)
) STRICT;
CREATE UNIQUE INDEX lease_address ON lease (network, address);
