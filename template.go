package nacre

import (
	"context"
	"time"
)

// Template is a name with builds. One without a team is built in and public.
type Template struct {
	ID        TemplateID
	TeamID    TeamID
	Names     []string // aliases that resolve to it, e.g. "base", "moru-ai/base"
	Public    bool
	Build     BuildID // the current one; "" while none is ready
	Resources Resources
	Runtime   RuntimeName // what its sandboxes run on where the create does not say; "" for any
	// Start and Ready end a recipe: Start is run by the shell in a booted sandbox,
	// and when Ready exits with 0 its state is kept as Warm, which creates go on
	// from. "" for none.
	Start, Ready string
	Warm         SnapshotID
	CreatedAt    time.Time
	UpdatedAt    time.Time
	Use          TemplateUse // the asking team's; only Service.Templates fills it in
}

// TemplateUse is how often a team made sandboxes of a template, forks of them among
// these, and when last. It is a second or two behind.
type TemplateUse struct {
	Count int
	Last  time.Time // zero for never
}

// Add adds what v counts.
func (u *TemplateUse) Add(v TemplateUse) {
	u.Count += v.Count
	if v.Last.After(u.Last) {
		u.Last = v.Last
	}
}

// TemplateStore keeps templates. Errors and concurrency as in SandboxStore.
type TemplateStore interface {
	// PutTemplate adds or replaces by ID. A name that another template visible
	// to the same team has is CodeConflict.
	PutTemplate(ctx context.Context, t Template) error
	// ResolveTemplate finds by id or name what the team may use: its own first,
	// then public ones. Else CodeNotFound.
	ResolveTemplate(ctx context.Context, team TeamID, nameOrID string) (Template, error)
	// Templates lists what the team owns, or what is public when team is "".
	Templates(ctx context.Context, team TeamID) ([]Template, error)
	// TemplateUse returns what the team made sandboxes of, by the name or id that it
	// asked for, as far as UsageStore has folded the events that tell of it. What no
	// template is called any more for the team PutTemplate may forget.
	TemplateUse(ctx context.Context, team TeamID) (map[string]TemplateUse, error)
}
