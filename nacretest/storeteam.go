package nacretest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestTeamStore is the contract of nacre.TeamStore.
func TestTeamStore(t *testing.T, open func(t *testing.T) nacre.TeamStore) {
	store := open(t)
	t.Run("Teams", func(t *testing.T) { teamsByName(t, store) })
	t.Run("Keys", func(t *testing.T) { teamKeys(t, store) })
	t.Run("Fault36_TwoTeams", func(t *testing.T) { teamKeysSealed(t, store) })
}

func mustTeam(t *testing.T, store nacre.TeamStore, name string) nacre.Team {
	t.Helper()
	team, err := store.EnsureTeam(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return team
}

func teamsByName(t *testing.T, store nacre.TeamStore) {
	names := []string{"b", "A", "a.b-c_9", strings.Repeat("x", 64)}
	made := map[string]nacre.Team{}
	for _, n := range names {
		made[n] = mustTeam(t, store, n)
		if made[n].Name != n || made[n].ID == "" || made[n].CreatedAt.IsZero() {
			t.Errorf("team %+v", made[n])
		}
		expectSame(t, "the same team again", mustTeam(t, store, n), made[n])
	}
	for _, bad := range []string{"", "a b", "a/b", "é", "a\x00", strings.Repeat("x", 65), "a\n", "../x"} {
		_, err := store.EnsureTeam(t.Context(), bad)
		expectCode(t, fmt.Sprintf("team %q", bad), err, nacre.CodeInvalid)
	}
	all, err := store.Teams(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var want []nacre.Team
	for _, n := range slices.Sorted(maps.Keys(made)) {
		want = append(want, made[n])
	}
	expectSame(t, "Teams", all, want)

	ids := make([]nacre.TeamID, 12)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			team, err := store.EnsureTeam(t.Context(), "at-once")
			if err != nil {
				t.Error(err)
			}
			ids[i] = team.ID
		})
	}
	wg.Wait()
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("one name made teams %v", ids)
	}
}

func teamKeys(t *testing.T, store nacre.TeamStore) {
	team := mustTeam(t, store, "keys")
	_, old := nacre.NewKey(team.ID, "old 'é'", storeEpoch)
	_, young := nacre.NewKey(team.ID, "", storeEpoch.Add(time.Second))
	for _, k := range []nacre.Key{old, young} {
		if err := store.InsertKey(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		expectCode(t, "the same key again", store.InsertKey(t.Context(), k), nacre.CodeConflict)
		got, err := store.KeyByHash(t.Context(), k.Hash)
		if err != nil {
			t.Fatal(err)
		}
		expectSame(t, "KeyByHash", got, k)
	}
	twin := young
	twin.ID += "x"
	expectCode(t, "a hash twice", store.InsertKey(t.Context(), twin), nacre.CodeConflict)
	for name, set := range map[string]func(*nacre.Key){"no id": func(k *nacre.Key) { k.ID = "" }, "a bad name": func(k *nacre.Key) { k.Name = "\xff" },
		"NUL": func(k *nacre.Key) { k.Name = "a\x00" }, "a long name": func(k *nacre.Key) { k.Name = strings.Repeat("n", 300) }} {
		_, k := nacre.NewKey(team.ID, "k", storeEpoch)
		set(&k)
		expectCode(t, name, store.InsertKey(t.Context(), k), nacre.CodeInvalid)
	}
	_, orphan := nacre.NewKey(nacre.NewTeamID(), "k", storeEpoch)
	expectCode(t, "a key of no team", store.InsertKey(t.Context(), orphan), nacre.CodeNotFound)

	young.UsedAt = storeEpoch.Add(time.Hour)
	for _, at := range []time.Time{storeEpoch, young.UsedAt, storeEpoch.Add(time.Minute)} { // an earlier one changes nothing
		if err := store.KeysUsed(t.Context(), map[string]time.Time{young.ID: at, "key_unknown": at, "\x00": at}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := store.KeyByHash(t.Context(), young.Hash); err != nil {
		t.Fatal(err)
	} else {
		expectSame(t, "a key that was used", got, young)
	}

	if err := store.RevokeKey(t.Context(), team.ID, old.ID); err != nil {
		t.Fatal(err)
	}
	_, err := store.KeyByHash(t.Context(), old.Hash)
	expectCode(t, "a revoked key", err, nacre.CodeNotFound)
	_, err = store.KeyByHash(t.Context(), [32]byte{1})
	expectCode(t, "an unknown key", err, nacre.CodeNotFound)
	first, err := store.Keys(t.Context(), team.ID)
	if err != nil || len(first) != 2 || first[1].RevokedAt.IsZero() {
		t.Fatalf("Keys: %+v, %v", first, err)
	}
	old.RevokedAt = first[1].RevokedAt
	expectSame(t, "Keys", first, []nacre.Key{young, old})
	if err := store.RevokeKey(t.Context(), team.ID, old.ID); err != nil {
		t.Errorf("revoking again: %v", err)
	}
	again, err := store.Keys(t.Context(), team.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "Keys after a repeat", again, first)
}

func teamKeysSealed(t *testing.T, store nacre.TeamStore) {
	ann, bob := mustTeam(t, store, "ann"), mustTeam(t, store, "bob")
	_, k := nacre.NewKey(ann.ID, "k", storeEpoch)
	if err := store.InsertKey(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	for _, team := range []nacre.TeamID{bob.ID, "", "' OR 1=1 --", "\x00"} {
		expectCode(t, "RevokeKey by another team", store.RevokeKey(t.Context(), team, k.ID), nacre.CodeNotFound)
		if keys, err := store.Keys(t.Context(), team); err != nil || len(keys) != 0 {
			t.Errorf("Keys of %q: %v, %v", team, keys, err)
		}
	}
	for _, id := range hostile {
		expectCode(t, fmt.Sprintf("RevokeKey %.40q", id), store.RevokeKey(t.Context(), ann.ID, id), nacre.CodeNotFound)
	}
	if _, err := store.KeyByHash(t.Context(), k.Hash); err != nil {
		t.Errorf("the key is worthless now: %v", err)
	}
}

// TestTemplateStore is the contract of nacre.TemplateStore.
func TestTemplateStore(t *testing.T, open func(t *testing.T) nacre.TemplateStore) {
	store := open(t)
	ann, bob := nacre.NewTeamID(), nacre.NewTeamID()
	make1 := func(team nacre.TeamID, public bool, names ...string) nacre.Template {
		return nacre.Template{ID: nacre.NewTemplateID(), TeamID: team, Names: names, Public: public, Build: nacre.NewBuildID(),
			Resources: nacre.Resources{CPUs: 2, MemoryMiB: 512}, Runtime: "gvisor", Start: "serve &", Ready: "curl -f localhost", Warm: nacre.NewSnapshotID(),
			CreatedAt: storeEpoch, UpdatedAt: storeEpoch.Add(time.Second)}
	}
	put := func(tpl nacre.Template) nacre.Template {
		t.Helper()
		if err := store.PutTemplate(t.Context(), tpl); err != nil {
			t.Fatal(err)
		}
		return tpl
	}
	resolves := func(team nacre.TeamID, name string, want nacre.Template) {
		t.Helper()
		got, err := store.ResolveTemplate(t.Context(), team, name)
		if err != nil {
			t.Errorf("ResolveTemplate %q: %v", name, err)
			return
		}
		expectSame(t, "template "+name, got, want)
	}
	unknown := func(team nacre.TeamID, name string) {
		t.Helper()
		_, err := store.ResolveTemplate(t.Context(), team, name)
		expectCode(t, fmt.Sprintf("ResolveTemplate %.40q", name), err, nacre.CodeNotFound)
	}
	base := put(make1("", true, "base", "moru-ai/base"))
	mine := put(make1(ann, false, "mine"))
	theirs := put(make1(bob, false, "mine", "theirs")) // each team has names of its own
	for _, team := range []nacre.TeamID{ann, bob, ""} {
		resolves(team, "base", base)
		resolves(team, "moru-ai/base", base)
		resolves(team, string(base.ID), base)
	}
	resolves(ann, "mine", mine)
	resolves(bob, "mine", theirs)
	resolves(ann, string(mine.ID), mine)
	for _, name := range append(slices.Clone(hostile), "theirs", string(theirs.ID), "Base", "base ") {
		unknown(ann, name)
	}
	unknown("", "mine")
	unknown("", string(mine.ID))

	// Names that collide with what the same team sees.
	expectCode(t, "a public name again", store.PutTemplate(t.Context(), make1(ann, false, "x", "base")), nacre.CodeConflict)
	expectCode(t, "an own name again", store.PutTemplate(t.Context(), make1(ann, false, "mine")), nacre.CodeConflict)
	expectCode(t, "a public name by a public one", store.PutTemplate(t.Context(), make1("", true, "base")), nacre.CodeConflict)
	unknown(ann, "x") // refused as a whole
	for _, bad := range []string{"", "\xff", "a\x00", "a\r\nb", strings.Repeat("n", 300)} {
		expectCode(t, fmt.Sprintf("name %.40q", bad), store.PutTemplate(t.Context(), make1(ann, false, bad)), nacre.CodeInvalid)
	}
	stolen := mine
	stolen.TeamID = bob
	expectCode(t, "Fault36: another team's id", store.PutTemplate(t.Context(), stolen), nacre.CodeConflict)
	resolves(ann, "mine", mine)

	// A public one may have a name that another team uses for its own: own first.
	shared := put(make1(bob, true, "shared"))
	resolves(ann, "shared", shared)
	hers := make1(ann, false, "tool")
	put(hers)
	tool := put(make1(bob, true, "tool"))
	resolves(ann, "tool", hers)
	resolves(nacre.NewTeamID(), "tool", tool)

	// Replacing: names that it gives up are free, and a repeat changes nothing.
	mine.Names, mine.Build, mine.UpdatedAt = []string{"renamed", "mine2", "renamed"}, nacre.NewBuildID(), storeEpoch.Add(time.Hour)
	put(put(mine))
	unknown(ann, "mine")
	resolves(ann, "renamed", mine)
	again := put(make1(ann, false, "mine"))
	resolves(ann, "mine", again)
	shared.Public = false
	put(shared)
	unknown(ann, "shared")

	lists := func(team nacre.TeamID, want ...nacre.Template) {
		t.Helper()
		got, err := store.Templates(t.Context(), team)
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(want, func(a, b nacre.Template) int { return strings.Compare(string(a.ID), string(b.ID)) })
		expectSame(t, "Templates", got, want)
	}
	lists(ann, mine, hers, again)
	lists(bob, theirs, shared, tool)
	lists("", base, tool)
	lists(nacre.NewTeamID())
	lists("\x00")
}
