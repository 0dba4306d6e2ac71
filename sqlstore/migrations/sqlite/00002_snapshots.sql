-- +goose Up
CREATE TABLE snapshots (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL,
    name       TEXT NOT NULL, -- '' for none
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    node       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER, -- NULL for never
    disk_bytes INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    body       TEXT NOT NULL,
    env        BLOB -- as in sandboxes
) STRICT;
CREATE INDEX snapshots_team ON snapshots (team_id, created_at, id);
CREATE INDEX snapshots_all ON snapshots (created_at, id);
CREATE INDEX snapshots_name ON snapshots (team_id, name, created_at) WHERE name <> '';
CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, created_at);
CREATE INDEX snapshots_expires ON snapshots (expires_at) WHERE expires_at IS NOT NULL;

-- The snapshot that a sandbox holds: NULL when it names none, has ended or is ending.
ALTER TABLE sandboxes ADD COLUMN snapshot_id TEXT;
CREATE INDEX sandboxes_snapshot ON sandboxes (snapshot_id) WHERE snapshot_id IS NOT NULL;

ALTER TABLE sandboxes ADD COLUMN name TEXT NOT NULL DEFAULT '';
CREATE INDEX sandboxes_name ON sandboxes (team_id, name, state, started_at, id) WHERE name <> '';

-- +goose Down
DROP INDEX sandboxes_name;
ALTER TABLE sandboxes DROP COLUMN name;
DROP INDEX sandboxes_snapshot;
ALTER TABLE sandboxes DROP COLUMN snapshot_id;
DROP TABLE snapshots;
