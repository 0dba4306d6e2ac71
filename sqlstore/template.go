package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"strings"
	"unicode"

	"github.com/nacrehq/nacre"
)

// maxTemplateName is how long a template's name may be, in bytes.
const maxTemplateName = 256

// templateBody is the part of a template that no query looks at.
type templateBody struct {
	Names     []string        `json:"names"`
	Build     nacre.BuildID   `json:"build,omitempty"`
	Resources nacre.Resources `json:"resources"`

	Runtime nacre.RuntimeName `json:"runtime,omitempty"`
	Start   string            `json:"start,omitempty"`
	Ready   string            `json:"ready,omitempty"`
	Warm    nacre.SnapshotID  `json:"warm,omitempty"`
}

// PutTemplate implements nacre.TemplateStore. An id that another team's template
// has is CodeConflict. A template without a team is public whatever it says.
func (db *DB) PutTemplate(ctx context.Context, t nacre.Template) error {
	t.Public = t.Public || t.TeamID == ""
	if t.ID == "" || !plain(string(t.ID)) || !plain(string(t.TeamID)) {
		return nacre.Invalidf("id", "a template needs an id")
	}
	for _, name := range t.Names {
		if name == "" || len(name) > maxTemplateName || !plain(name) || strings.ContainsFunc(name, unicode.IsControl) {
			return nacre.Invalidf("names", "a template's name is text of 1 to %d bytes without control characters", maxTemplateName)
		}
	}
	text, err := json.Marshal(templateBody{Names: t.Names, Build: t.Build, Resources: t.Resources, Runtime: t.Runtime,
		Start: t.Start, Ready: t.Ready, Warm: t.Warm})
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the template cannot be encoded")
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		c.changesLookups()
		if db.d.lockNames != "" {
			if _, err := c.exec(ctx, db.d.lockNames); err != nil {
				return err
			}
		}
		public := 0
		if t.Public {
			public = 1
		}
		n, err := c.exec(ctx, `INSERT INTO templates (id, team_id, public, created_at, updated_at, body) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET public = excluded.public, created_at = excluded.created_at,
			updated_at = excluded.updated_at, body = excluded.body WHERE templates.team_id = excluded.team_id`,
			string(t.ID), string(t.TeamID), public, t.CreatedAt.UnixMicro(), t.UpdatedAt.UnixMicro(), string(text))
		if err != nil {
			return err
		}
		if n == 0 {
			return nacre.Errorf(nacre.CodeConflict, "another template has this id")
		}
		if err := putNames(ctx, c, t); err != nil {
			return err
		}
		return forgetUse(ctx, c)
	})
}

// forgetUse deletes the counts of what no template is called any more for the team
// that made sandboxes of it: nobody is shown them. It is the store's own cleaning, of
// all teams at once, and each count is held against what its team can see.
func forgetUse(ctx context.Context, c conn) error {
	_, err := c.exec(ctx, `DELETE FROM template_use
		WHERE NOT EXISTS (SELECT 1 FROM template_names n WHERE n.name = template_use.template AND n.scope IN ('', template_use.team_id))
		AND NOT EXISTS (SELECT 1 FROM templates t WHERE t.id = template_use.template AND (t.public = 1 OR t.team_id = template_use.team_id))`)
	return err
}

// putNames replaces a template's names.
func putNames(ctx context.Context, c conn, t nacre.Template) error {
	if _, err := c.exec(ctx, `DELETE FROM template_names WHERE template_id = ?`, string(t.ID)); err != nil {
		return err
	}
	scope := string(t.TeamID)
	if t.Public {
		scope = ""
	}
	names := slices.Clone(t.Names)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		taken, err := c.one(ctx, func(*sql.Rows) error { return nil },
			`SELECT 1 FROM template_names n JOIN templates t ON t.id = n.template_id
			WHERE n.name = ? AND t.id <> ? AND (t.team_id = ? OR t.public = 1)`, name, string(t.ID), string(t.TeamID))
		if err != nil {
			return err
		}
		if taken {
			return &nacre.Error{Code: nacre.CodeConflict, Field: "names", Message: "another template has the name " + name + "; choose another one"}
		}
		if _, err := c.exec(ctx, `INSERT INTO template_names (name, scope, template_id) VALUES (?, ?, ?)`, name, scope, string(t.ID)); err != nil {
			return err
		}
	}
	return nil
}

const templateColumns = `t.id, t.team_id, t.public, t.created_at, t.updated_at, t.body`

func scanTemplate(r *sql.Rows, t *nacre.Template) error {
	var public, created, updated int64
	var text []byte
	if err := r.Scan((*string)(&t.ID), (*string)(&t.TeamID), &public, &created, &updated, &text); err != nil {
		return err
	}
	var b templateBody
	if err := json.Unmarshal(text, &b); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record of template "+string(t.ID)+" cannot be read")
	}
	t.Public, t.Names, t.Build, t.Resources = public != 0, b.Names, b.Build, b.Resources
	t.Runtime, t.Start, t.Ready, t.Warm = b.Runtime, b.Start, b.Ready, b.Warm
	t.CreatedAt, t.UpdatedAt = fromMicro(created), fromMicro(updated)
	return nil
}

// templateLookup is what ResolveTemplate is asked.
type templateLookup struct {
	team     nacre.TeamID
	nameOrID string
}

// ResolveTemplate implements nacre.TemplateStore. Of the team's own templates,
// and of the public ones, an id goes before a name.
func (db *DB) ResolveTemplate(ctx context.Context, team nacre.TeamID, nameOrID string) (nacre.Template, error) {
	t, age, known := db.templates.get(templateLookup{team, nameOrID})
	if known {
		t.Names = slices.Clone(t.Names)
		return t, nil
	}
	found := false
	if nameOrID != "" && plain(nameOrID) && plain(string(team)) {
		var err error
		found, err = db.reads.one(ctx, func(r *sql.Rows) error { return scanTemplate(r, &t) },
			`SELECT `+templateColumns+` FROM templates t
			WHERE (t.team_id = ? OR t.public = 1)
			AND (t.id = ? OR t.id IN (SELECT n.template_id FROM template_names n WHERE n.name = ? AND n.scope IN (?, '')))
			ORDER BY CASE WHEN t.team_id = ? THEN 0 ELSE 1 END, CASE WHEN t.id = ? THEN 0 ELSE 1 END LIMIT 1`,
			string(team), nameOrID, nameOrID, string(team), string(team), nameOrID)
		if err != nil {
			return nacre.Template{}, db.fail(ctx, err)
		}
	}
	if !found {
		return nacre.Template{}, nacre.Errorf(nacre.CodeNotFound, "no template has this name or id")
	}
	if db.alone {
		db.templates.put(templateLookup{team, nameOrID}, t, age)
		t.Names = slices.Clone(t.Names)
	}
	return t, nil
}

// Templates implements nacre.TemplateStore. The oldest come first.
func (db *DB) Templates(ctx context.Context, team nacre.TeamID) ([]nacre.Template, error) {
	if !plain(string(team)) {
		return nil, nil
	}
	where, args := `t.public = 1`, []any(nil)
	if team != "" {
		where, args = `t.team_id = ?`, []any{string(team)}
	}
	var out []nacre.Template
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		var t nacre.Template
		err := scanTemplate(r, &t)
		out = append(out, t)
		return err
	}, `SELECT `+templateColumns+` FROM templates t WHERE `+where+` ORDER BY t.created_at, t.id`, args...)
	if err != nil {
		return nil, db.fail(ctx, err)
	}
	return out, nil
}

// templateUser is a row of template_use: who made sandboxes, and of what.
type templateUser struct{ team, template string }

// countTemplates adds the sandboxes that the events after one Seq, up to another, tell of.
func countTemplates(ctx context.Context, c conn, after, to int64) error {
	used := map[templateUser]nacre.TemplateUse{}
	err := c.each(ctx, func(r *sql.Rows) error {
		var by templateUser
		var at int64
		var text []byte
		if err := r.Scan(&by.team, &at, &text); err != nil {
			return err
		}
		var data struct{ Template string }
		if json.Unmarshal(text, &data) != nil || data.Template == "" || !plain(data.Template) {
			return nil // an event that tells no template is nobody's use
		}
		by.template = data.Template
		sum := used[by]
		sum.Add(nacre.TemplateUse{Count: 1, Last: fromMicro(at)})
		used[by] = sum
		return nil
	}, `SELECT team_id, at, data FROM events WHERE seq > ? AND seq <= ? AND kind = ?`, after, to, string(nacre.EventCreated))
	if err != nil {
		return err
	}
	for by, sum := range used {
		_, err := c.exec(ctx, `INSERT INTO template_use (team_id, template, count, last_at) VALUES (?, ?, ?, ?)
			ON CONFLICT (team_id, template) DO UPDATE SET count = template_use.count + excluded.count,
			last_at = CASE WHEN template_use.last_at > excluded.last_at THEN template_use.last_at ELSE excluded.last_at END`,
			by.team, by.template, sum.Count, sum.Last.UnixMicro())
		if err != nil {
			return err
		}
	}
	return nil
}

// TemplateUse implements nacre.TemplateStore.
func (db *DB) TemplateUse(ctx context.Context, team nacre.TeamID) (map[string]nacre.TemplateUse, error) {
	out := map[string]nacre.TemplateUse{}
	if !plain(string(team)) {
		return out, nil
	}
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		var name string
		var u nacre.TemplateUse
		var last int64
		if err := r.Scan(&name, &u.Count, &last); err != nil {
			return err
		}
		u.Last = fromMicro(last)
		out[name] = u
		return nil
	}, `SELECT template, count, last_at FROM template_use WHERE team_id = ?`, string(team))
	if err != nil {
		return nil, db.fail(ctx, err)
	}
	return out, nil
}
