-- Times are microseconds since 1970, UTC, where nothing else is said.

-- +goose Up
-- Requests that happen once. answer is NULL until there is one; it is sealed.
CREATE TABLE requests (
    team_id    TEXT NOT NULL,
    route      TEXT NOT NULL,
    key        TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    holder     TEXT NOT NULL, -- '' once it is answered
    lease      INTEGER NOT NULL,
    body       TEXT NOT NULL,
    answer     BLOB,
    PRIMARY KEY (team_id, route, key)
) STRICT;
CREATE INDEX requests_created ON requests (created_at);

CREATE TABLE secrets (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL,
    name       TEXT NOT NULL,
    scope      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, -- 0 for never
    body       TEXT NOT NULL,
    value      BLOB NOT NULL,
    UNIQUE (team_id, name)
) STRICT;

CREATE TABLE secret_bindings (
    id          TEXT PRIMARY KEY,
    team_id     TEXT NOT NULL,
    secret_id   TEXT NOT NULL REFERENCES secrets (id) ON DELETE CASCADE,
    sandbox_id  TEXT NOT NULL,
    env         TEXT NOT NULL,
    placeholder TEXT NOT NULL UNIQUE,
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX secret_bindings_secret ON secret_bindings (secret_id);
CREATE INDEX secret_bindings_team ON secret_bindings (team_id, created_at);
CREATE INDEX secret_bindings_sandbox ON secret_bindings (sandbox_id);
CREATE UNIQUE INDEX secret_bindings_env ON secret_bindings (sandbox_id, env) WHERE env <> '';

CREATE TABLE previews (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    slug       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;
CREATE INDEX previews_sandbox ON previews (sandbox_id, created_at);

CREATE TABLE preview_tokens (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    preview_id TEXT NOT NULL, -- '' for all of the sandbox's
    hash       BLOB NOT NULL,
    hint       TEXT NOT NULL,
    scope      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX preview_tokens_sandbox ON preview_tokens (sandbox_id, created_at);

CREATE TABLE domains (
    id          TEXT PRIMARY KEY,
    team_id     TEXT NOT NULL,
    name        TEXT NOT NULL,
    preview_id  TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    verified_at INTEGER NOT NULL, -- 0 until then
    body        TEXT NOT NULL,
    UNIQUE (team_id, name)
) STRICT;
CREATE UNIQUE INDEX domains_verified ON domains (name) WHERE verified_at > 0;

-- Milliseconds. 9223372036854775807 is the end of a span that goes on.
CREATE TABLE usage_spans (
    seq        INTEGER PRIMARY KEY,
    team_id    TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    kind       TEXT NOT NULL,
    start_at   INTEGER NOT NULL,
    end_at     INTEGER NOT NULL,
    cpus       INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    disk_mib   INTEGER NOT NULL,
    labels     TEXT NOT NULL
) STRICT;
CREATE INDEX usage_spans_team ON usage_spans (team_id, end_at);
CREATE INDEX usage_spans_sandbox ON usage_spans (sandbox_id, start_at);
CREATE UNIQUE INDEX usage_spans_open ON usage_spans (sandbox_id) WHERE end_at = 9223372036854775807;
CREATE INDEX usage_spans_ended ON usage_spans (end_at) WHERE end_at < 9223372036854775807;

CREATE TABLE usage_mark (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    seq    INTEGER NOT NULL,
    wall   INTEGER NOT NULL, -- microseconds
    steady INTEGER NOT NULL, -- nanoseconds
    boot   TEXT NOT NULL
) STRICT;

CREATE TABLE deployments (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL,
    name       TEXT NOT NULL,
    source     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    body       TEXT NOT NULL,
    env        BLOB,
    UNIQUE (team_id, name)
) STRICT;

CREATE INDEX events_activity ON events (at)
    WHERE kind IN ('exec.started', 'exec.completed', 'file.changed', 'preview.ready');

-- +goose Down
DROP INDEX events_activity;
DROP TABLE deployments;
DROP TABLE usage_mark;
DROP TABLE usage_spans;
DROP TABLE domains;
DROP TABLE preview_tokens;
DROP TABLE previews;
DROP TABLE secret_bindings;
DROP TABLE secrets;
DROP TABLE requests;
