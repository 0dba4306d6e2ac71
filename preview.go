package nacre

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// PreviewID names a preview, "pv_" + 16 characters; PreviewTokenID a token for one,
// "pt_" + 16; DomainID a customer's domain, "dom_" + 16.
type (
	PreviewID      string
	PreviewTokenID string
	DomainID       string
)

// NewPreviewID returns a fresh id.
func NewPreviewID() PreviewID { return PreviewID("pv_" + randomID(16)) }

// NewPreviewTokenID returns a fresh id.
func NewPreviewTokenID() PreviewTokenID { return PreviewTokenID("pt_" + randomID(16)) }

// NewDomainID returns a fresh id.
func NewDomainID() DomainID { return DomainID("dom_" + randomID(16)) }

// NewPreviewSlug returns a host label that nobody guesses.
func NewPreviewSlug() string { return "p" + randomID(15) }

// Preview opens one port of a sandbox under a host name of its own, for as long as
// the sandbox runs.
type Preview struct {
	ID      PreviewID
	TeamID  TeamID
	Sandbox SandboxID
	Port    int
	// Slug is the host label, unique in the installation: 1 to 63 of [a-z0-9-], not
	// beginning or ending with '-'.
	Slug      string
	Label     string   // the client's own word for it
	Private   bool     // it demands a token
	Ancestors []string // origins whose pages may embed it; none: what the guest says holds
	Metadata  map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// PreviewToken opens a private preview, or all of one sandbox's. The token itself is
// shown once and never kept.
type PreviewToken struct {
	ID        PreviewTokenID
	TeamID    TeamID
	Sandbox   SandboxID
	Preview   PreviewID // "" for all of the sandbox's
	Hash      [32]byte  // HashPreviewToken
	Hint      string    // the first characters
	Scope     string    // the client's word
	CreatedAt time.Time
	ExpiresAt time.Time
}

// NewPreviewToken returns a token of 160 random bits, to show once.
func NewPreviewToken() string {
	var b [20]byte
	_, _ = rand.Read(b[:])
	return "pvt_" + hex.EncodeToString(b[:])
}

// HashPreviewToken is what the store keeps of a token.
func HashPreviewToken(token string) [32]byte { return sha256.Sum256([]byte(token)) }

// Domain is a name of a customer's under which their previews answer, once it is
// shown to be theirs.
type Domain struct {
	ID     DomainID
	TeamID TeamID
	Name   string // lower case, no dot at its end
	// Preview is what the name itself shows; "" when the names one label below it are
	// the team's slugs.
	Preview PreviewID
	// Target is the name that a CNAME of the customer's must lead to. It belongs to
	// this record alone and so proves who set it; Proof is the TXT that proves the same.
	Target, Proof string
	CreatedAt     time.Time
	CheckedAt     time.Time
	VerifiedAt    time.Time // zero until it was verified; only then it answers
}

// PreviewRoute is what the edge must know to answer for a host.
type PreviewRoute struct {
	Preview Preview
	Tokens  []PreviewToken // those that open it, expired ones perhaps too
}

// PreviewRoutes finds previews for the edge.
type PreviewRoutes interface {
	// PreviewBySlug returns the preview of a host label. An unknown one is CodeNotFound.
	PreviewBySlug(ctx context.Context, slug string) (PreviewRoute, error)
	// PreviewByDomain returns the preview of a verified domain's name, or of a label
	// below one. Anything else is CodeNotFound.
	PreviewByDomain(ctx context.Context, host string) (PreviewRoute, error)
}

// PreviewStore keeps previews and their tokens. Errors and concurrency as in
// SandboxStore; lists are whole, oldest first. The previews and tokens of a sandbox
// go when its record is purged.
type PreviewStore interface {
	// InsertPreview adds one. Its sandbox must be the team's and alive, else
	// CodeNotFound. A slug that another preview has is CodeConflict, unless that one's
	// sandbox has ended: then it is replaced, if it has no LabelDeployment.
	InsertPreview(ctx context.Context, p Preview, events ...Event) error
	GetPreview(ctx context.Context, team TeamID, id PreviewID) (Preview, error)
	Previews(ctx context.Context, team TeamID, sandbox SandboxID) ([]Preview, error)
	// UpdatePreview is to previews what SandboxStore.Update is to sandboxes; the
	// sandbox may change, to another one of the team's.
	UpdatePreview(ctx context.Context, team TeamID, id PreviewID, change func(*Preview) error) (Preview, error)
	// DeletePreview deletes it with its tokens. A repeat is CodeNotFound.
	DeletePreview(ctx context.Context, team TeamID, id PreviewID) error

	// InsertPreviewToken adds one; its preview and sandbox must be the team's. The
	// hundred newest of a sandbox are kept.
	InsertPreviewToken(ctx context.Context, t PreviewToken) error
	PreviewTokens(ctx context.Context, team TeamID, sandbox SandboxID) ([]PreviewToken, error)
	// RevokePreviewTokens makes one token, or all of a preview, worthless, and returns
	// how many there were.
	RevokePreviewTokens(ctx context.Context, team TeamID, preview PreviewID, token PreviewTokenID) (int, error)
}

// DomainStore keeps customers' domains. Errors and concurrency as in SandboxStore.
type DomainStore interface {
	// InsertDomain adds one. A name that is verified for anybody, or that the team has,
	// is CodeConflict.
	InsertDomain(ctx context.Context, d Domain) error
	Domains(ctx context.Context, team TeamID) ([]Domain, error)
	// UpdateDomain is to domains what SandboxStore.Update is to sandboxes. Verifying a
	// name that is verified for another is CodeConflict.
	UpdateDomain(ctx context.Context, team TeamID, id DomainID, change func(*Domain) error) (Domain, error)
	DeleteDomain(ctx context.Context, team TeamID, id DomainID) error
}
