-- The same tables as on SQLite.

-- +goose Up
-- Requests that happen once. answer is NULL until there is one; it is sealed.
CREATE TABLE requests (
    team_id    TEXT COLLATE "C" NOT NULL,
    route      TEXT COLLATE "C" NOT NULL,
    key        TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    holder     TEXT NOT NULL, -- '' once it is answered
    lease      BIGINT NOT NULL,
    body       TEXT NOT NULL,
    answer     BYTEA,
    PRIMARY KEY (team_id, route, key)
);
CREATE INDEX requests_created ON requests (created_at);

CREATE TABLE secrets (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    scope      TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL, -- 0 for never
    body       TEXT NOT NULL,
    value      BYTEA NOT NULL,
    UNIQUE (team_id, name)
);

CREATE TABLE secret_bindings (
    id          TEXT COLLATE "C" PRIMARY KEY,
    team_id     TEXT COLLATE "C" NOT NULL,
    secret_id   TEXT COLLATE "C" NOT NULL REFERENCES secrets (id) ON DELETE CASCADE,
    sandbox_id  TEXT COLLATE "C" NOT NULL,
    env         TEXT NOT NULL,
    placeholder TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at  BIGINT NOT NULL
);
CREATE INDEX secret_bindings_secret ON secret_bindings (secret_id);
CREATE INDEX secret_bindings_team ON secret_bindings (team_id, created_at);
CREATE INDEX secret_bindings_sandbox ON secret_bindings (sandbox_id);
CREATE UNIQUE INDEX secret_bindings_env ON secret_bindings (sandbox_id, env) WHERE env <> '';

CREATE TABLE previews (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL,
    sandbox_id TEXT COLLATE "C" NOT NULL,
    slug       TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    body       TEXT NOT NULL
);
CREATE INDEX previews_sandbox ON previews (sandbox_id, created_at);

CREATE TABLE preview_tokens (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL,
    sandbox_id TEXT COLLATE "C" NOT NULL,
    preview_id TEXT COLLATE "C" NOT NULL, -- '' for all of the sandbox's
    hash       BYTEA NOT NULL,
    hint       TEXT NOT NULL,
    scope      TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX preview_tokens_sandbox ON preview_tokens (sandbox_id, created_at);

CREATE TABLE domains (
    id          TEXT COLLATE "C" PRIMARY KEY,
    team_id     TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    preview_id  TEXT COLLATE "C" NOT NULL,
    created_at  BIGINT NOT NULL,
    verified_at BIGINT NOT NULL, -- 0 until then
    body        TEXT NOT NULL,
    UNIQUE (team_id, name)
);
CREATE UNIQUE INDEX domains_verified ON domains (name) WHERE verified_at > 0;

-- Milliseconds. 9223372036854775807 is the end of a span that goes on.
CREATE TABLE usage_spans (
    seq        BIGINT PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL,
    sandbox_id TEXT COLLATE "C" NOT NULL,
    kind       TEXT NOT NULL,
    start_at   BIGINT NOT NULL,
    end_at     BIGINT NOT NULL,
    cpus       BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    disk_mib   BIGINT NOT NULL,
    labels     TEXT COLLATE "C" NOT NULL
);
CREATE INDEX usage_spans_team ON usage_spans (team_id, end_at);
CREATE INDEX usage_spans_sandbox ON usage_spans (sandbox_id, start_at);
CREATE UNIQUE INDEX usage_spans_open ON usage_spans (sandbox_id) WHERE end_at = 9223372036854775807;
CREATE INDEX usage_spans_ended ON usage_spans (end_at) WHERE end_at < 9223372036854775807;

CREATE TABLE usage_mark (
    one    BIGINT PRIMARY KEY CHECK (one = 1),
    seq    BIGINT NOT NULL,
    wall   BIGINT NOT NULL, -- microseconds
    steady BIGINT NOT NULL, -- nanoseconds
    boot   TEXT NOT NULL
);

CREATE TABLE deployments (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    source     TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    body       TEXT NOT NULL,
    env        BYTEA,
    UNIQUE (team_id, name)
);

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
