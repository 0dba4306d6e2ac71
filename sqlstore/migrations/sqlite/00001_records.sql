-- Times are microseconds since 1970, UTC. What no query looks at lies in
-- sandboxes.body, one JSON document.

-- +goose Up
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE teams (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL REFERENCES teams (id),
    name       TEXT NOT NULL,
    hash       BLOB NOT NULL UNIQUE,
    hint       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER -- NULL while the key is good
) STRICT;
CREATE INDEX api_keys_team ON api_keys (team_id, created_at);

CREATE TABLE templates (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL, -- '' for one that is built in
    public     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;
CREATE INDEX templates_team ON templates (team_id);
CREATE INDEX templates_public ON templates (id) WHERE public = 1;

CREATE TABLE template_names (
    name        TEXT NOT NULL,
    scope       TEXT NOT NULL, -- the team that can use it, '' for everybody
    template_id TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    PRIMARY KEY (name, scope)
) STRICT, WITHOUT ROWID;
CREATE INDEX template_names_template ON template_names (template_id);

CREATE TABLE sandboxes (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL,
    state      TEXT NOT NULL,
    node       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    deadline   INTEGER NOT NULL,
    due_at     INTEGER, -- the deadline while the sandbox is alive, else NULL
    ended_at   INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    body       TEXT NOT NULL,
    env        BLOB -- NULL, or a byte that tells the form and the environment in it
) STRICT;
-- The lists: equality on all but the last two, which are the order.
CREATE INDEX sandboxes_team ON sandboxes (team_id, state, started_at, id);
CREATE INDEX sandboxes_state ON sandboxes (state, started_at, id);
CREATE INDEX sandboxes_node ON sandboxes (node, state, started_at, id);
CREATE INDEX sandboxes_due ON sandboxes (due_at, started_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX sandboxes_ended ON sandboxes (ended_at) WHERE state = 'ended';

-- One row for each pair of a sandbox's metadata. tag is a hash of key and value;
-- state and started_at are copies, so that a list by metadata is one range.
CREATE TABLE sandbox_metadata (
    team_id    TEXT NOT NULL,
    tag        BLOB NOT NULL,
    state      TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    sandbox_id TEXT NOT NULL,
    PRIMARY KEY (team_id, tag, state, started_at, sandbox_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    team_id    TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    kind       TEXT NOT NULL,
    data       TEXT NOT NULL
) STRICT;
CREATE INDEX events_team ON events (team_id, seq);
CREATE INDEX events_sandbox ON events (sandbox_id, seq);

-- +goose Down
DROP TABLE events;
DROP TABLE sandbox_metadata;
DROP TABLE sandboxes;
DROP TABLE template_names;
DROP TABLE templates;
DROP TABLE api_keys;
DROP TABLE teams;
DROP TABLE settings;
