package nacretest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// SecretRecords is a store of secrets with the sandboxes that they are bound to.
type SecretRecords interface {
	nacre.SandboxStore
	nacre.SecretStore
}

// TestSecretStore is the contract of nacre.SecretStore.
func TestSecretStore(t *testing.T, open func(t *testing.T) SecretRecords) {
	store := open(t)
	t.Run("RoundTrip", func(t *testing.T) { secretRoundTrip(t, store) })
	t.Run("Rotate", func(t *testing.T) { secretRotate(t, store) })
	t.Run("Bindings", func(t *testing.T) { secretBindings(t, store) })
	t.Run("ValueOnlyInItsSandbox", func(t *testing.T) { secretPlaceholder(t, store) })
	t.Run("Fault36_TwoTeams", func(t *testing.T) { secretTwoTeams(t, store) })
	t.Run("BadRecords", func(t *testing.T) { secretBad(t, store) })
}

const sampleValue = "sk-live-0123456789-the-value"

func insertSecret(t *testing.T, store nacre.SecretStore, team nacre.TeamID, name string) nacre.Secret {
	t.Helper()
	s := nacre.Secret{ID: nacre.NewSecretID(), TeamID: team, Name: name, Kind: "api_key", Scope: "user",
		Metadata: map[string]string{"é": "1"}, CreatedAt: storeEpoch, UpdatedAt: storeEpoch, Version: 1, Hint: "sk-l…"}
	if err := store.InsertSecret(t.Context(), s, sampleValue); err != nil {
		t.Fatal(err)
	}
	return s
}

func bind(t *testing.T, store nacre.SecretStore, s nacre.Secret, sandbox nacre.SandboxID, env string) nacre.SecretBinding {
	t.Helper()
	b := nacre.SecretBinding{ID: nacre.NewBindingID(), TeamID: s.TeamID, Secret: s.ID, Sandbox: sandbox, Env: env,
		Placeholder: "tok-" + string(nacre.NewBindingID()), CreatedAt: storeEpoch}
	if err := store.BindSecret(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

func secretRoundTrip(t *testing.T, store SecretRecords) {
	team := nacre.NewTeamID()
	s := insertSecret(t, store, team, "A")
	got, err := store.GetSecret(t.Context(), team, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "GetSecret", got, s)
	if strings.Contains(fmt.Sprintf("%+v", got), "the-value") {
		t.Error("the record shows the value")
	}
	twin := s
	twin.ID = nacre.NewSecretID()
	expectCode(t, "the same name again", store.InsertSecret(t.Context(), twin, "x"), nacre.CodeConflict)
	other := insertSecret(t, store, team, "B")
	all, err := store.Secrets(t.Context(), team, nacre.SecretFilter{})
	if err != nil || len(all) != 2 {
		t.Errorf("%d secrets, %v", len(all), err)
	}
	for _, f := range []nacre.SecretFilter{{Name: "B"}, {Secret: other.ID}} {
		got, err := store.Secrets(t.Context(), team, f)
		if err != nil {
			t.Fatal(err)
		}
		expectSame(t, fmt.Sprint(f), got, []nacre.Secret{other})
	}
	if got, _ := store.Secrets(t.Context(), team, nacre.SecretFilter{Scope: "tenant"}); len(got) != 0 {
		t.Errorf("another scope: %+v", got)
	}
	if err := store.DeleteSecret(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}
	expectCode(t, "a second delete", store.DeleteSecret(t.Context(), team, s.ID), nacre.CodeNotFound)
	_, err = store.GetSecret(t.Context(), team, s.ID)
	expectCode(t, "a deleted one", err, nacre.CodeNotFound)
}

func secretRotate(t *testing.T, store SecretRecords) {
	team := nacre.NewTeamID()
	s := insertSecret(t, store, team, "A")
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	b := bind(t, store, s, box.ID, "KEY")
	value, name, until := "another-value-0123456789", "C", storeEpoch.Add(1e6*time.Hour)
	got, err := store.ChangeSecret(t.Context(), team, s.ID, nacre.SecretChange{Value: &value, Name: &name, ExpiresAt: &until})
	if err != nil {
		t.Fatal(err)
	}
	if got.Version != 2 || got.Name != "C" || got.RotatedAt.IsZero() || !got.ExpiresAt.Equal(until) || got.Hint != "anot…" || len(got.Metadata) != 1 {
		t.Errorf("after the change: %+v", got)
	}
	kept, err := store.GetSecret(t.Context(), team, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "as kept", kept, got)
	if v, of, err := store.SecretValue(t.Context(), box.ID, b.Placeholder); err != nil || v != value || of.ID != s.ID {
		t.Errorf("the placeholder stands for %q, %v", v, err)
	}
	past := storeEpoch.Add(-1e6 * time.Hour)
	if _, err := store.ChangeSecret(t.Context(), team, s.ID, nacre.SecretChange{ExpiresAt: &past}); err != nil {
		t.Fatal(err)
	}
	_, _, err = store.SecretValue(t.Context(), box.ID, b.Placeholder)
	expectCode(t, "after its expiry", err, nacre.CodeNotFound)
	insertSecret(t, store, team, "D")
	taken := "D"
	_, err = store.ChangeSecret(t.Context(), team, s.ID, nacre.SecretChange{Name: &taken})
	expectCode(t, "a name in use", err, nacre.CodeConflict)
}

func secretBindings(t *testing.T, store SecretRecords) {
	team := nacre.NewTeamID()
	s, s2 := insertSecret(t, store, team, "A"), insertSecret(t, store, team, "B")
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	gone := mustInsert(t, store, SampleSandbox(team, nacre.StateEnded))
	b := bind(t, store, s, box.ID, "KEY")
	b2 := b
	b2.ID, b2.Secret, b2.Placeholder = nacre.NewBindingID(), s2.ID, "other"
	expectCode(t, "the variable again", store.BindSecret(t.Context(), b2), nacre.CodeConflict)
	b2.Sandbox = gone.ID
	expectCode(t, "a sandbox that ended", store.BindSecret(t.Context(), b2), nacre.CodeNotFound)
	b2.Sandbox, b2.Secret = box.ID, nacre.NewSecretID()
	expectCode(t, "an unknown secret", store.BindSecret(t.Context(), b2), nacre.CodeNotFound)
	got, err := store.SecretBindings(t.Context(), team, nacre.SecretFilter{Sandbox: box.ID})
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "bindings", got, []nacre.SecretBinding{b})
	if got, _ := store.SecretBindings(t.Context(), team, nacre.SecretFilter{Secret: s2.ID}); len(got) != 0 {
		t.Errorf("bindings of the other: %+v", got)
	}
	if got, _ := store.Secrets(t.Context(), team, nacre.SecretFilter{Sandbox: box.ID}); len(got) != 1 || got[0].ID != s.ID {
		t.Errorf("secrets of the sandbox: %+v", got)
	}
	if err := store.UnbindSecret(t.Context(), team, b.ID); err != nil {
		t.Fatal(err)
	}
	expectCode(t, "a second unbind", store.UnbindSecret(t.Context(), team, b.ID), nacre.CodeNotFound)
	_, _, err = store.SecretValue(t.Context(), box.ID, b.Placeholder)
	expectCode(t, "an unbound placeholder", err, nacre.CodeNotFound)
	bind(t, store, s, box.ID, "KEY")
	if err := store.DeleteSecret(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}
	if got, _ := store.SecretBindings(t.Context(), team, nacre.SecretFilter{Sandbox: box.ID}); len(got) != 0 {
		t.Errorf("bindings of a deleted secret: %+v", got)
	}
}

func secretPlaceholder(t *testing.T, store SecretRecords) {
	team := nacre.NewTeamID()
	s := insertSecret(t, store, team, "A")
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	neighbour := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	b := bind(t, store, s, box.ID, "")
	bind(t, store, s, box.ID, "") // without a variable there may be many
	if v, _, err := store.SecretValue(t.Context(), box.ID, b.Placeholder); err != nil || v != sampleValue {
		t.Errorf("%q, %v", v, err)
	}
	_, _, err := store.SecretValue(t.Context(), neighbour.ID, b.Placeholder)
	expectCode(t, "in another sandbox", err, nacre.CodeNotFound)
	for _, p := range []string{"", "tok", b.Placeholder + "x", "\x00", "\xff"} {
		_, _, err = store.SecretValue(t.Context(), box.ID, p)
		expectCode(t, fmt.Sprintf("placeholder %q", p), err, nacre.CodeNotFound)
	}
	if _, err := store.Update(t.Context(), team, box.ID, func(s *nacre.Sandbox) ([]nacre.Event, error) { return nil, s.Move(nacre.StateEnded) }); err != nil {
		t.Fatal(err)
	}
	_, _, err = store.SecretValue(t.Context(), box.ID, b.Placeholder)
	expectCode(t, "after the sandbox's end", err, nacre.CodeNotFound)
}

func secretTwoTeams(t *testing.T, store SecretRecords) {
	team, other := nacre.NewTeamID(), nacre.NewTeamID()
	s := insertSecret(t, store, team, "A")
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	theirs := mustInsert(t, store, SampleSandbox(other, nacre.StateRunning))
	b := bind(t, store, s, box.ID, "KEY")
	insertSecret(t, store, other, "A") // a name is a team's own
	_, err := store.GetSecret(t.Context(), other, s.ID)
	expectCode(t, "GetSecret", err, nacre.CodeNotFound)
	value := "x"
	_, err = store.ChangeSecret(t.Context(), other, s.ID, nacre.SecretChange{Value: &value})
	expectCode(t, "ChangeSecret", err, nacre.CodeNotFound)
	expectCode(t, "DeleteSecret", store.DeleteSecret(t.Context(), other, s.ID), nacre.CodeNotFound)
	expectCode(t, "UnbindSecret", store.UnbindSecret(t.Context(), other, b.ID), nacre.CodeNotFound)
	steal := nacre.SecretBinding{ID: nacre.NewBindingID(), TeamID: other, Secret: s.ID, Sandbox: theirs.ID, Placeholder: "p1", CreatedAt: storeEpoch}
	expectCode(t, "another team's secret", store.BindSecret(t.Context(), steal), nacre.CodeNotFound)
	plant := nacre.SecretBinding{ID: nacre.NewBindingID(), TeamID: team, Secret: s.ID, Sandbox: theirs.ID, Placeholder: "p2", CreatedAt: storeEpoch}
	expectCode(t, "another team's sandbox", store.BindSecret(t.Context(), plant), nacre.CodeNotFound)
	if got, _ := store.SecretBindings(t.Context(), other, nacre.SecretFilter{}); len(got) != 0 {
		t.Errorf("bindings: %+v", got)
	}
	if v, _, err := store.SecretValue(t.Context(), box.ID, b.Placeholder); err != nil || v != sampleValue {
		t.Errorf("after the attempts: %q, %v", v, err)
	}
}

func secretBad(t *testing.T, store SecretRecords) {
	good := nacre.Secret{ID: nacre.NewSecretID(), TeamID: nacre.NewTeamID(), Name: "N"}
	expectCode(t, "no value", store.InsertSecret(t.Context(), good, ""), nacre.CodeInvalid)
	expectCode(t, "a long value", store.InsertSecret(t.Context(), good, string(make([]byte, 70<<10))), nacre.CodeInvalid)
	for _, name := range []string{"", "a\nb", "\xff", strings.Repeat("x", 257)} {
		bad := good
		bad.Name = name
		expectCode(t, fmt.Sprintf("name %q", name), store.InsertSecret(t.Context(), bad, "x"), nacre.CodeInvalid)
	}
}
