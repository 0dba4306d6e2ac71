-- The same as on SQLite.

-- +goose Up
ALTER TABLE api_keys ADD COLUMN used_at BIGINT; -- NULL for never; coarse

-- How often a team made sandboxes of a template, by the name or id that it asked for.
-- Counted together with usage: up to usage_mark.seq.
CREATE TABLE template_use (
    team_id  TEXT COLLATE "C" NOT NULL,
    template TEXT COLLATE "C" NOT NULL,
    count    BIGINT NOT NULL,
    last_at  BIGINT NOT NULL,
    PRIMARY KEY (team_id, template)
);
INSERT INTO template_use (team_id, template, count, last_at)
SELECT team_id, name, count(*), max(at) FROM (
    SELECT team_id, at, data::json ->> 'template' AS name FROM events
    WHERE kind = 'sandbox.created' AND seq <= (SELECT coalesce(max(seq), 0) FROM usage_mark)) made
WHERE name IS NOT NULL GROUP BY team_id, name;

-- +goose Down
DROP TABLE template_use;
ALTER TABLE api_keys DROP COLUMN used_at;
