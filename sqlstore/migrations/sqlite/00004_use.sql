-- +goose Up
ALTER TABLE api_keys ADD COLUMN used_at INTEGER; -- NULL for never; coarse

-- How often a team made sandboxes of a template, by the name or id that it asked for.
-- Counted together with usage: up to usage_mark.seq.
CREATE TABLE template_use (
    team_id  TEXT NOT NULL,
    template TEXT NOT NULL,
    count    INTEGER NOT NULL,
    last_at  INTEGER NOT NULL,
    PRIMARY KEY (team_id, template)
) STRICT, WITHOUT ROWID;
INSERT INTO template_use (team_id, template, count, last_at)
SELECT team_id, json_extract(data, '$.template') AS name, count(*), max(at) FROM events
WHERE kind = 'sandbox.created' AND seq <= (SELECT coalesce(max(seq), 0) FROM usage_mark)
GROUP BY team_id, name HAVING name IS NOT NULL;

-- +goose Down
DROP TABLE template_use;
ALTER TABLE api_keys DROP COLUMN used_at;
