package nacretest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// PreviewRecords is a store of previews with their sandboxes and domains.
type PreviewRecords interface {
	nacre.SandboxStore
	nacre.EventLog
	nacre.PreviewStore
	nacre.PreviewRoutes
	nacre.DomainStore
}

// TestPreviewStore is the contract of nacre.PreviewStore, PreviewRoutes and DomainStore.
func TestPreviewStore(t *testing.T, open func(t *testing.T) PreviewRecords) {
	store := open(t)
	t.Run("RoundTrip", func(t *testing.T) { previewRoundTrip(t, store) })
	t.Run("Slugs", func(t *testing.T) { previewSlugs(t, store) })
	t.Run("Update", func(t *testing.T) { previewUpdate(t, store) })
	t.Run("Tokens", func(t *testing.T) { previewTokens(t, store) })
	t.Run("Routes", func(t *testing.T) { previewRoutes(t, store) })
	t.Run("Domains", func(t *testing.T) { domains(t, store) })
	t.Run("Fault36_TwoTeams", func(t *testing.T) { previewTwoTeams(t, store) })
	t.Run("GoneWithTheRecord", func(t *testing.T) { previewPurged(t, store) })
}

func insertPreview(t *testing.T, store PreviewRecords, box nacre.Sandbox) nacre.Preview {
	t.Helper()
	p := nacre.Preview{ID: nacre.NewPreviewID(), TeamID: box.TeamID, Sandbox: box.ID, Port: 3000, Slug: nacre.NewPreviewSlug(),
		Label: "web é", Private: true, Ancestors: []string{"https://a.example"}, Metadata: map[string]string{"k": "v"},
		CreatedAt: storeEpoch, UpdatedAt: storeEpoch}
	if err := store.InsertPreview(t.Context(), p, nacre.Event{Kind: nacre.EventPreviewReady, Data: map[string]string{"port": "3000"}}); err != nil {
		t.Fatal(err)
	}
	return p
}

func insertToken(t *testing.T, store PreviewRecords, p nacre.Preview, all bool) nacre.PreviewToken {
	t.Helper()
	tok := nacre.PreviewToken{ID: nacre.NewPreviewTokenID(), TeamID: p.TeamID, Sandbox: p.Sandbox, Preview: p.ID,
		Hash: nacre.HashPreviewToken(nacre.NewPreviewToken()), Hint: "pvt_12", Scope: "read", CreatedAt: storeEpoch, ExpiresAt: storeEpoch.Add(time.Hour)}
	if all {
		tok.Preview = ""
	}
	if err := store.InsertPreviewToken(t.Context(), tok); err != nil {
		t.Fatal(err)
	}
	return tok
}

func previewRoundTrip(t *testing.T, store PreviewRecords) {
	team := nacre.NewTeamID()
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	p := insertPreview(t, store, box)
	got, err := store.GetPreview(t.Context(), team, p.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "GetPreview", got, p)
	p2 := insertPreview(t, store, box)
	list, err := store.Previews(t.Context(), team, box.ID)
	if err != nil || len(list) != 2 {
		t.Errorf("%d previews, %v", len(list), err)
	}
	waitEvents(t, store, nacre.EventFilter{TeamID: team, Kinds: []nacre.EventKind{nacre.EventPreviewReady}}, 2)
	if err := store.DeletePreview(t.Context(), team, p.ID); err != nil {
		t.Fatal(err)
	}
	expectCode(t, "a second delete", store.DeletePreview(t.Context(), team, p.ID), nacre.CodeNotFound)
	list, _ = store.Previews(t.Context(), team, box.ID)
	expectSame(t, "what is left", list, []nacre.Preview{p2})
	for _, state := range []nacre.State{nacre.StateStopping, nacre.StateEnded} {
		p := p
		p.Sandbox = mustInsert(t, store, SampleSandbox(team, state)).ID
		expectCode(t, "a preview of one that is "+string(state), store.InsertPreview(t.Context(), p), nacre.CodeNotFound)
	}
	p.Port = 65536
	expectCode(t, "port 65536", store.InsertPreview(t.Context(), p), nacre.CodeInvalid)
}

func previewSlugs(t *testing.T, store PreviewRecords) {
	team := nacre.NewTeamID()
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	p := insertPreview(t, store, box)
	other := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	twin := p
	twin.ID, twin.TeamID, twin.Sandbox = nacre.NewPreviewID(), other.TeamID, other.ID
	expectCode(t, "a slug in use", store.InsertPreview(t.Context(), twin), nacre.CodeConflict)
	for _, bad := range []string{"", "-a", "a-", "A", "a.b", "a_b", "é", strings.Repeat("a", 64), "a\x00"} {
		b := p
		b.ID, b.Slug = nacre.NewPreviewID(), bad
		expectCode(t, fmt.Sprintf("slug %q", bad), store.InsertPreview(t.Context(), b), nacre.CodeInvalid)
	}
	if _, err := store.Update(t.Context(), team, box.ID, func(s *nacre.Sandbox) ([]nacre.Event, error) { return nil, s.Move(nacre.StateEnded) }); err != nil {
		t.Fatal(err)
	}
	if err := store.InsertPreview(t.Context(), twin); err != nil {
		t.Errorf("the slug of a sandbox that ended is not free: %v", err)
	}
	_, err := store.GetPreview(t.Context(), team, p.ID)
	expectCode(t, "the preview that was replaced", err, nacre.CodeNotFound)
}

func previewUpdate(t *testing.T, store PreviewRecords) {
	team := nacre.NewTeamID()
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	next := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	foreign := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	p, p2 := insertPreview(t, store, box), insertPreview(t, store, box)
	tok := insertToken(t, store, p, false)
	slug := nacre.NewPreviewSlug()
	got, err := store.UpdatePreview(t.Context(), team, p.ID, func(p *nacre.Preview) error {
		p.Sandbox, p.Private, p.Slug, p.Ancestors, p.UpdatedAt = next.ID, false, slug, nil, storeEpoch.Add(time.Second)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	kept, _ := store.GetPreview(t.Context(), team, p.ID)
	expectSame(t, "as kept", kept, got)
	if got.Sandbox != next.ID || got.Private || got.Slug != slug {
		t.Errorf("after the update: %+v", got)
	}
	if toks, _ := store.PreviewTokens(t.Context(), team, next.ID); len(toks) != 1 || toks[0].ID != tok.ID {
		t.Errorf("the token did not follow: %+v", toks)
	}
	for what, c := range map[string]struct {
		change func(*nacre.Preview)
		code   nacre.Code
	}{
		"another team's sandbox": {func(p *nacre.Preview) { p.Sandbox = foreign.ID }, nacre.CodeNotFound},
		"a slug in use":          {func(p *nacre.Preview) { p.Slug = p2.Slug }, nacre.CodeConflict},
		"another id":             {func(p *nacre.Preview) { p.ID = "x" }, nacre.CodeInvalid},
		"another team":           {func(p *nacre.Preview) { p.TeamID = foreign.TeamID }, nacre.CodeInvalid},
		"no port":                {func(p *nacre.Preview) { p.Port = 0 }, nacre.CodeInvalid},
	} {
		_, err := store.UpdatePreview(t.Context(), team, p.ID, func(p *nacre.Preview) error { c.change(p); return nil })
		expectCode(t, what, err, c.code)
	}
	mine := errors.New("mine")
	if _, err := store.UpdatePreview(t.Context(), team, p.ID, func(p *nacre.Preview) error { p.Port = 9; return mine }); !errors.Is(err, mine) {
		t.Errorf("the change's error came back as %v", err)
	}
	kept, _ = store.GetPreview(t.Context(), team, p.ID)
	expectSame(t, "after the refusals", kept, got)
}

func previewTokens(t *testing.T, store PreviewRecords) {
	team := nacre.NewTeamID()
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	p, p2 := insertPreview(t, store, box), insertPreview(t, store, box)
	one, all, other := insertToken(t, store, p, false), insertToken(t, store, p, true), insertToken(t, store, p2, false)
	toks, err := store.PreviewTokens(t.Context(), team, box.ID)
	if err != nil || len(toks) != 3 {
		t.Fatalf("%d tokens, %v", len(toks), err)
	}
	for _, got := range toks {
		if got.ID == one.ID {
			expectSame(t, "a token", got, one)
		}
	}
	ids := func(r nacre.PreviewRoute) map[nacre.PreviewTokenID]bool {
		m := map[nacre.PreviewTokenID]bool{}
		for _, t := range r.Tokens {
			m[t.ID] = true
		}
		return m
	}
	r, err := store.PreviewBySlug(t.Context(), p.Slug)
	if m := ids(r); err != nil || len(m) != 2 || !m[one.ID] || !m[all.ID] {
		t.Errorf("the tokens of the preview: %v, %v", m, err)
	}
	if n, err := store.RevokePreviewTokens(t.Context(), team, p.ID, ""); n != 1 || err != nil {
		t.Errorf("revoked %d, %v", n, err)
	}
	if n, err := store.RevokePreviewTokens(t.Context(), team, "", all.ID); n != 1 || err != nil {
		t.Errorf("revoked %d, %v", n, err)
	}
	if n, err := store.RevokePreviewTokens(t.Context(), team, "", ""); n != 0 || err != nil {
		t.Errorf("revoked %d for nothing, %v", n, err)
	}
	r, _ = store.PreviewBySlug(t.Context(), p.Slug)
	if len(r.Tokens) != 0 {
		t.Errorf("after the revocation: %+v", r.Tokens)
	}
	for range 120 {
		insertToken(t, store, p2, false)
	}
	if toks, _ := store.PreviewTokens(t.Context(), team, box.ID); len(toks) != 100 {
		t.Errorf("%d tokens are kept, want 100", len(toks))
	}
	if err := store.DeletePreview(t.Context(), team, p2.ID); err != nil {
		t.Fatal(err)
	}
	if toks, _ := store.PreviewTokens(t.Context(), team, box.ID); len(toks) != 0 {
		t.Errorf("tokens of a deleted preview: %d", len(toks))
	}
	_ = other
}

func previewRoutes(t *testing.T, store PreviewRecords) {
	team := nacre.NewTeamID()
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	p := insertPreview(t, store, box)
	r, err := store.PreviewBySlug(t.Context(), p.Slug)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "PreviewBySlug", r.Preview, p)
	for _, slug := range []string{"", "nope", "A", "\x00", p.Slug + "x"} {
		_, err := store.PreviewBySlug(t.Context(), slug)
		expectCode(t, fmt.Sprintf("slug %q", slug), err, nacre.CodeNotFound)
	}
	exact := domain(t, store, team, p.ID)
	wild := domain(t, store, team, "")
	hosts := map[string]bool{exact.Name: true, p.Slug + "." + wild.Name: true,
		wild.Name: false, p.Slug + "." + exact.Name: false, "nope." + wild.Name: false, "": false, "x\x00": false}
	for host := range hosts {
		_, err := store.PreviewByDomain(t.Context(), host)
		expectCode(t, host+" before it was verified", err, nacre.CodeNotFound)
	}
	verify(t, store, exact)
	verify(t, store, wild)
	for host, want := range hosts {
		r, err := store.PreviewByDomain(t.Context(), host)
		if want && (err != nil || r.Preview.ID != p.ID) || !want && !nacre.IsCode(err, nacre.CodeNotFound) {
			t.Errorf("host %q: %v, %v", host, r.Preview.ID, err)
		}
	}
	stranger := insertPreview(t, store, mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning)))
	_, err = store.PreviewByDomain(t.Context(), stranger.Slug+"."+wild.Name)
	expectCode(t, "another team's slug under our domain", err, nacre.CodeNotFound)
}

func domain(t *testing.T, store nacre.DomainStore, team nacre.TeamID, p nacre.PreviewID) nacre.Domain {
	t.Helper()
	d := nacre.Domain{ID: nacre.NewDomainID(), TeamID: team, Name: nacre.NewPreviewSlug() + ".example.com", Preview: p,
		Target: "t.nacre.test", Proof: "proof", CreatedAt: storeEpoch}
	if err := store.InsertDomain(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	return d
}

func verify(t *testing.T, store nacre.DomainStore, d nacre.Domain) {
	t.Helper()
	_, err := store.UpdateDomain(t.Context(), d.TeamID, d.ID, func(d *nacre.Domain) error {
		d.CheckedAt, d.VerifiedAt = storeEpoch, storeEpoch
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func domains(t *testing.T, store PreviewRecords) {
	team, other := nacre.NewTeamID(), nacre.NewTeamID()
	d := domain(t, store, team, "")
	list, err := store.Domains(t.Context(), team)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "Domains", list, []nacre.Domain{d})
	twin := d
	twin.ID = nacre.NewDomainID()
	expectCode(t, "the same name again", store.InsertDomain(t.Context(), twin), nacre.CodeConflict)
	rival := d
	rival.ID, rival.TeamID = nacre.NewDomainID(), other
	if err := store.InsertDomain(t.Context(), rival); err != nil {
		t.Errorf("a name that nobody has verified is not to be had: %v", err)
	}
	verify(t, store, d)
	_, err = store.UpdateDomain(t.Context(), other, rival.ID, func(d *nacre.Domain) error { d.VerifiedAt = storeEpoch; return nil })
	expectCode(t, "verifying what another has verified", err, nacre.CodeConflict)
	third := rival
	third.ID, third.TeamID = nacre.NewDomainID(), nacre.NewTeamID()
	expectCode(t, "a name that another has verified", store.InsertDomain(t.Context(), third), nacre.CodeConflict)
	for _, bad := range []string{"", "com", "A.b", "a..b", "-a.b", "a.b.", "a b.c", strings.Repeat("a.", 150) + "b"} {
		b := third
		b.Name = bad
		expectCode(t, fmt.Sprintf("name %q", bad), store.InsertDomain(t.Context(), b), nacre.CodeInvalid)
	}
	expectCode(t, "another team's delete", store.DeleteDomain(t.Context(), other, d.ID), nacre.CodeNotFound)
	if err := store.DeleteDomain(t.Context(), team, d.ID); err != nil {
		t.Fatal(err)
	}
	expectCode(t, "a second delete", store.DeleteDomain(t.Context(), team, d.ID), nacre.CodeNotFound)
	verify(t, store, rival)
}

func previewTwoTeams(t *testing.T, store PreviewRecords) {
	team, other := nacre.NewTeamID(), nacre.NewTeamID()
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	p := insertPreview(t, store, box)
	tok := insertToken(t, store, p, false)
	_, err := store.GetPreview(t.Context(), other, p.ID)
	expectCode(t, "GetPreview", err, nacre.CodeNotFound)
	_, err = store.UpdatePreview(t.Context(), other, p.ID, func(p *nacre.Preview) error { p.Private = false; return nil })
	expectCode(t, "UpdatePreview", err, nacre.CodeNotFound)
	expectCode(t, "DeletePreview", store.DeletePreview(t.Context(), other, p.ID), nacre.CodeNotFound)
	if list, _ := store.Previews(t.Context(), other, box.ID); len(list) != 0 {
		t.Errorf("Previews: %+v", list)
	}
	if list, _ := store.PreviewTokens(t.Context(), other, box.ID); len(list) != 0 {
		t.Errorf("PreviewTokens: %+v", list)
	}
	if n, _ := store.RevokePreviewTokens(t.Context(), other, p.ID, tok.ID); n != 0 {
		t.Error("another team revoked a token")
	}
	forged := tok
	forged.ID, forged.TeamID = nacre.NewPreviewTokenID(), other
	expectCode(t, "a token for another team's preview", store.InsertPreviewToken(t.Context(), forged), nacre.CodeNotFound)
	theirs := p
	theirs.ID, theirs.TeamID, theirs.Slug = nacre.NewPreviewID(), other, nacre.NewPreviewSlug()
	expectCode(t, "a preview of another team's sandbox", store.InsertPreview(t.Context(), theirs), nacre.CodeNotFound)
	d := nacre.Domain{ID: nacre.NewDomainID(), TeamID: other, Name: "steal.example.com", Preview: p.ID, CreatedAt: storeEpoch}
	expectCode(t, "a domain for another team's preview", store.InsertDomain(t.Context(), d), nacre.CodeNotFound)
}

func previewPurged(t *testing.T, store PreviewRecords) {
	team := nacre.NewTeamID()
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	p := insertPreview(t, store, box)
	insertToken(t, store, p, true)
	_, err := store.Update(t.Context(), team, box.ID, func(s *nacre.Sandbox) ([]nacre.Event, error) {
		s.EndedAt = storeEpoch.Add(-1000 * time.Hour)
		return nil, s.Move(nacre.StateEnded)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Purge(t.Context(), storeEpoch.Add(-999*time.Hour), 10); err != nil {
		t.Fatal(err)
	}
	_, err = store.GetPreview(t.Context(), team, p.ID)
	expectCode(t, "the preview of a purged sandbox", err, nacre.CodeNotFound)
	if toks, _ := store.PreviewTokens(t.Context(), team, box.ID); len(toks) != 0 {
		t.Errorf("tokens of a purged sandbox: %d", len(toks))
	}
}
