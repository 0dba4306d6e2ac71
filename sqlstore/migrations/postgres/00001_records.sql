-- The same tables as on SQLite. COLLATE "C" makes ids sort by their bytes
-- whatever the database's locale is.

-- +goose Up
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE teams (
    id         TEXT COLLATE "C" PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL REFERENCES teams (id),
    name       TEXT NOT NULL,
    hash       BYTEA NOT NULL UNIQUE,
    hint       TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX api_keys_team ON api_keys (team_id, created_at);

CREATE TABLE templates (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL,
    public     BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    body       TEXT NOT NULL
);
CREATE INDEX templates_team ON templates (team_id);
CREATE INDEX templates_public ON templates (id) WHERE public = 1;

CREATE TABLE template_names (
    name        TEXT COLLATE "C" NOT NULL,
    scope       TEXT COLLATE "C" NOT NULL,
    template_id TEXT COLLATE "C" NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    PRIMARY KEY (name, scope)
);
CREATE INDEX template_names_template ON template_names (template_id);

CREATE TABLE sandboxes (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL,
    state      TEXT COLLATE "C" NOT NULL,
    node       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    deadline   BIGINT NOT NULL,
    due_at     BIGINT,
    ended_at   BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    body       TEXT NOT NULL,
    env        BYTEA
);
CREATE INDEX sandboxes_team ON sandboxes (team_id, state, started_at, id);
CREATE INDEX sandboxes_state ON sandboxes (state, started_at, id);
CREATE INDEX sandboxes_node ON sandboxes (node, state, started_at, id);
CREATE INDEX sandboxes_due ON sandboxes (due_at, started_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX sandboxes_ended ON sandboxes (ended_at) WHERE state = 'ended';

CREATE TABLE sandbox_metadata (
    team_id    TEXT COLLATE "C" NOT NULL,
    tag        BYTEA NOT NULL,
    state      TEXT COLLATE "C" NOT NULL,
    started_at BIGINT NOT NULL,
    sandbox_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (team_id, tag, state, started_at, sandbox_id)
);

CREATE TABLE events (
    seq        BIGINT PRIMARY KEY,
    at         BIGINT NOT NULL,
    team_id    TEXT COLLATE "C" NOT NULL,
    sandbox_id TEXT COLLATE "C" NOT NULL,
    kind       TEXT NOT NULL,
    data       TEXT NOT NULL
);
CREATE INDEX events_team ON events (team_id, seq);
CREATE INDEX events_sandbox ON events (sandbox_id, seq);

-- An event's seq is made from the number of its transaction. Transactions commit
-- out of order, so a reader that remembers the last seq it saw must not be shown
-- one while an older transaction may still commit: readers stop at the oldest
-- transaction in progress (event_horizon). base is added so that seq goes on
-- growing when a dump is restored into a cluster whose numbers are lower.
CREATE TABLE event_base (
    one  BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
    base BIGINT NOT NULL
);
INSERT INTO event_base (base) VALUES (0);

CREATE FUNCTION event_seq(n BIGINT) RETURNS BIGINT LANGUAGE SQL VOLATILE AS
    'SELECT base + pg_current_xact_id()::text::bigint * 1024 + n FROM event_base';
CREATE FUNCTION event_horizon() RETURNS BIGINT LANGUAGE SQL STABLE AS
    'SELECT base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint * 1024 FROM event_base';

-- +goose Down
DROP FUNCTION event_horizon();
DROP FUNCTION event_seq(BIGINT);
DROP TABLE event_base;
DROP TABLE events;
DROP TABLE sandbox_metadata;
DROP TABLE sandboxes;
DROP TABLE template_names;
DROP TABLE templates;
DROP TABLE api_keys;
DROP TABLE teams;
DROP TABLE settings;
