-- The same tables as on SQLite.

-- +goose Up
CREATE TABLE snapshots (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    kind       TEXT COLLATE "C" NOT NULL,
    state      TEXT COLLATE "C" NOT NULL,
    sandbox_id TEXT COLLATE "C" NOT NULL,
    node       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    disk_bytes BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    body       TEXT NOT NULL,
    env        BYTEA
);
CREATE INDEX snapshots_team ON snapshots (team_id, created_at, id);
CREATE INDEX snapshots_all ON snapshots (created_at, id);
CREATE INDEX snapshots_name ON snapshots (team_id, name, created_at) WHERE name <> '';
CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, created_at);
CREATE INDEX snapshots_expires ON snapshots (expires_at) WHERE expires_at IS NOT NULL;

ALTER TABLE sandboxes ADD COLUMN snapshot_id TEXT COLLATE "C";
CREATE INDEX sandboxes_snapshot ON sandboxes (snapshot_id) WHERE snapshot_id IS NOT NULL;

ALTER TABLE sandboxes ADD COLUMN name TEXT COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX sandboxes_name ON sandboxes (team_id, name, state, started_at, id) WHERE name <> '';

-- +goose Down
DROP INDEX sandboxes_name;
ALTER TABLE sandboxes DROP COLUMN name;
DROP INDEX sandboxes_snapshot;
ALTER TABLE sandboxes DROP COLUMN snapshot_id;
DROP TABLE snapshots;
