package nacretest

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestUsageStore is the contract of nacre.UsageStore. open returns an empty one.
func TestUsageStore(t *testing.T, open func(t *testing.T) nacre.UsageStore) {
	t.Run("Fold", func(t *testing.T) { usageFold(t, open(t)) })
	t.Run("Sums", func(t *testing.T) { usageSums(t, open(t)) })
	t.Run("SumsEqualAModel", func(t *testing.T) { usageModel(t, open(t)) })
	t.Run("Purge", func(t *testing.T) { usagePurge(t, open(t)) })
}

// usageEpoch is in whole milliseconds, as spans are.
var usageEpoch = storeEpoch.Truncate(time.Millisecond)

func sampleSpan(team nacre.TeamID, seq int64) nacre.UsageSpan {
	return nacre.UsageSpan{TeamID: team, Sandbox: nacre.NewSandboxID(), Seq: seq, Kind: nacre.UsageRunning,
		Start: usageEpoch, Resources: nacre.Resources{CPUs: 2, MemoryMiB: 512, DiskMiB: 1024}, Labels: map[string]string{"ws": "é 1"}}
}

func usageFold(t *testing.T, store nacre.UsageStore) {
	zero, err := store.UsageMark(t.Context())
	if err != nil || zero != (nacre.UsageMark{}) {
		t.Fatalf("the first mark: %+v, %v", zero, err)
	}
	team := nacre.NewTeamID()
	a, b := sampleSpan(team, 5), sampleSpan(team, 7)
	first := nacre.UsageMark{Seq: 9, Wall: storeEpoch, Steady: 77 * time.Hour, Boot: "boot"}
	if err := store.FoldUsage(t.Context(), zero, first, []nacre.UsageSpan{b, a}); err != nil {
		t.Fatal(err)
	}
	mark, err := store.UsageMark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "the mark", mark, first)
	second := first
	second.Seq = 12
	expectCode(t, "a fold of what was folded", store.FoldUsage(t.Context(), zero, second, []nacre.UsageSpan{sampleSpan(team, 8)}), nacre.CodeConflict)
	all, err := store.OpenUsage(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "open spans", all, []nacre.UsageSpan{a, b})
	some, err := store.OpenUsage(t.Context(), []nacre.SandboxID{b.Sandbox, nacre.NewSandboxID()})
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "open spans of one", some, []nacre.UsageSpan{b})

	closed := a
	closed.End = a.Start.Add(time.Second)
	next := a
	next.Seq, next.Kind, next.Start = 11, nacre.UsagePaused, closed.End
	if err := store.FoldUsage(t.Context(), first, second, []nacre.UsageSpan{next, closed}); err != nil {
		t.Fatal(err)
	}
	all, _ = store.OpenUsage(t.Context(), nil)
	expectSame(t, "open spans after the second fold", all, []nacre.UsageSpan{b, next})
	spans, err := store.UsageSpans(t.Context(), nacre.UsageFilter{TeamID: team, Sandbox: a.Sandbox, Now: usageEpoch.Add(time.Hour)}, 10)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "the spans of one", spans, []nacre.UsageSpan{next, closed})
}

// fold writes spans to a store whose mark does not matter.
func fold(t testing.TB, store nacre.UsageStore, spans ...nacre.UsageSpan) {
	t.Helper()
	mark, err := store.UsageMark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next := mark
	next.Seq++
	if err := store.FoldUsage(t.Context(), mark, next, spans); err != nil {
		t.Fatal(err)
	}
}

func usageSums(t *testing.T, store nacre.UsageStore) {
	team := nacre.NewTeamID()
	run := sampleSpan(team, 1)
	run.End = run.Start.Add(10 * time.Second)
	rest := run
	rest.Seq, rest.Kind, rest.Start, rest.End = 2, nacre.UsagePaused, run.End, time.Time{}
	other := sampleSpan(team, 3)
	other.Labels = nil
	fold(t, store, run, rest, other, sampleSpan(nacre.NewTeamID(), 4))
	f := nacre.UsageFilter{TeamID: team, From: usageEpoch.Add(4 * time.Second), To: usageEpoch.Add(20 * time.Second), Now: usageEpoch.Add(time.Minute)}
	want := nacre.UsageSum{Group: "é 1", Sandboxes: 1, Runs: 1, Running: 6 * time.Second, Paused: 10 * time.Second,
		VCPUMs: 2 * 6000, MemoryMs: 512 * 6000, DiskMs: 1024 * 10000}
	none := nacre.UsageSum{Sandboxes: 1, Runs: 1, Running: 16 * time.Second, VCPUMs: 2 * 16000, MemoryMs: 512 * 16000}
	got, err := store.SumUsage(t.Context(), f, "ws")
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "by label", got, []nacre.UsageSum{none, want})
	f.Labels = map[string]string{"ws": "é 1"}
	got, _ = store.SumUsage(t.Context(), f, "")
	want.Group = string(run.Sandbox)
	expectSame(t, "by sandbox, of one label", got, []nacre.UsageSum{want})
	f.Labels, f.Sandbox = nil, run.Sandbox
	got, _ = store.SumUsage(t.Context(), f, "")
	expectSame(t, "of one sandbox", got, []nacre.UsageSum{want})
	for what, f := range map[string]nacre.UsageFilter{
		"no team":  {Now: usageEpoch.Add(time.Hour)},
		"no now":   {TeamID: team},
		"earlier":  {TeamID: team, To: usageEpoch, Now: usageEpoch.Add(time.Hour)},
		"a NUL":    {TeamID: "a\x00", Now: usageEpoch.Add(time.Hour)},
		"stranger": {TeamID: nacre.NewTeamID(), Sandbox: run.Sandbox, Now: usageEpoch.Add(time.Hour)},
	} {
		if got, err := store.SumUsage(t.Context(), f, ""); err != nil || len(got) != 0 {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

// usageModel compares sums of random spans and periods with plain arithmetic.
func usageModel(t *testing.T, store nacre.UsageStore) {
	rng := rand.New(rand.NewPCG(1, 2))
	team := nacre.NewTeamID()
	var spans []nacre.UsageSpan
	for i := range 200 {
		s := sampleSpan(team, int64(100+i))
		s.Start = usageEpoch.Add(time.Duration(rng.IntN(5000)) * time.Millisecond)
		s.Resources.CPUs, s.Resources.MemoryMiB, s.Resources.DiskMiB = 1+rng.IntN(8), 1+rng.IntN(8192), 1+rng.IntN(10240)
		s.Labels = map[string]string{"ws": string(rune('a' + rng.IntN(3))), "user": string(rune('a' + rng.IntN(2)))}
		if rng.IntN(2) == 0 {
			s.Kind = nacre.UsagePaused
		}
		if rng.IntN(3) > 0 {
			s.End = s.Start.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
		}
		spans = append(spans, s)
	}
	fold(t, store, spans...)
	for range 40 {
		f := nacre.UsageFilter{TeamID: team, From: usageEpoch.Add(time.Duration(rng.IntN(6000)) * time.Millisecond)}
		if rng.IntN(4) > 0 {
			f.To = f.From.Add(time.Duration(1+rng.IntN(6000)) * time.Millisecond)
		}
		f.Now = usageEpoch.Add(time.Duration(3000+rng.IntN(6000)) * time.Millisecond)
		if rng.IntN(2) == 0 {
			f.Labels = map[string]string{"user": "a"}
		}
		got, err := store.SumUsage(t.Context(), f, "ws")
		if err != nil {
			t.Fatal(err)
		}
		expectSame(t, "sums", got, sumModel(spans, f, "ws"))
	}
}

func sumModel(spans []nacre.UsageSpan, f nacre.UsageFilter, group string) []nacre.UsageSum {
	sums := map[string]nacre.UsageSum{}
	for _, s := range spans {
		start, end := s.Start, s.End
		if end.IsZero() {
			end = f.Now
		}
		if !f.To.IsZero() && end.After(f.To) {
			end = f.To
		}
		touched := (f.To.IsZero() || start.Before(f.To)) && (s.End.IsZero() || s.End.After(f.From))
		if !touched || f.Labels != nil && s.Labels["user"] != f.Labels["user"] {
			continue
		}
		if start.Before(f.From) {
			start = f.From
		}
		d := max(0, end.Sub(start))
		u := sums[s.Labels[group]]
		u.Group = s.Labels[group]
		u.Sandboxes++
		if s.Kind == nacre.UsageRunning {
			u.Runs++
			u.Running += d
			u.VCPUMs += int64(s.Resources.CPUs) * d.Milliseconds()
			u.MemoryMs += int64(s.Resources.MemoryMiB) * d.Milliseconds()
		} else {
			u.Paused += d
			u.DiskMs += int64(s.Resources.DiskMiB) * d.Milliseconds()
		}
		sums[u.Group] = u
	}
	out := []nacre.UsageSum{}
	for _, u := range sums {
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b nacre.UsageSum) int { return strings.Compare(a.Group, b.Group) })
	return out
}

func usagePurge(t *testing.T, store nacre.UsageStore) {
	team := nacre.NewTeamID()
	old, open := sampleSpan(team, 1), sampleSpan(team, 2)
	old.End = old.Start.Add(time.Second)
	fold(t, store, old, open)
	n, err := store.PurgeUsage(t.Context(), usageEpoch.Add(time.Hour), 10)
	again, err2 := store.PurgeUsage(t.Context(), usageEpoch.Add(time.Hour), 10)
	if n != 1 || again != 0 || errors.Join(err, err2) != nil {
		t.Errorf("purged %d, then %d: %v", n, again, errors.Join(err, err2))
	}
	if left, _ := store.OpenUsage(t.Context(), nil); len(left) != 1 {
		t.Errorf("an open span was purged")
	}
}

// UseStore is what TestTemplateUse needs.
type UseStore interface {
	nacre.SandboxStore
	nacre.UsageStore
	nacre.TemplateStore
}

// TestTemplateUse is the contract of what a store counts of templates. open returns
// an empty one.
func TestTemplateUse(t *testing.T, open func(t *testing.T) UseStore) {
	store := open(t)
	ann, bob := nacre.NewTeamID(), nacre.NewTeamID()
	made := func(team nacre.TeamID, template string, at time.Time, failed bool) {
		t.Helper()
		events := []nacre.Event{{Kind: nacre.EventCreated, Time: at, Data: map[string]string{"template": template}}}
		if !failed {
			events = append(events, nacre.Event{Kind: nacre.EventRunning, Time: at})
		}
		mustInsert(t, store, SampleSandbox(team, nacre.StateRunning), events...)
	}
	last := int64(0)
	counts := func(step string, want map[nacre.TeamID]map[string]nacre.TemplateUse) {
		t.Helper()
		mark, err := store.UsageMark(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		to := mark
		to.Seq, to.Wall, to.Boot = last, storeEpoch, "boot"
		if err := store.FoldUsage(t.Context(), mark, to, nil); err != nil {
			t.Fatal(err)
		}
		for team, uses := range want {
			got, err := store.TemplateUse(t.Context(), team)
			if err != nil {
				t.Fatal(err)
			}
			expectSame(t, step+": templates of "+string(team), got, uses)
		}
	}
	all := func() int64 {
		t.Helper()
		seq, err := store.(nacre.EventSignal).LastEvent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	none := map[string]nacre.TemplateUse{}
	hour := storeEpoch.Add(time.Hour)
	made(ann, "base", storeEpoch, false)
	made(ann, "base", hour, false)
	made(ann, "base", storeEpoch.Add(time.Minute), false)
	made(ann, "my own é", storeEpoch, true)
	made(bob, "base", storeEpoch, false)
	counts("before they are folded", map[nacre.TeamID]map[string]nacre.TemplateUse{ann: none, bob: none, "": none, "\x00": none})
	last = all()
	first := map[nacre.TeamID]map[string]nacre.TemplateUse{
		ann: {"base": {Count: 3, Last: hour}, "my own é": {Count: 1, Last: storeEpoch}}, bob: {"base": {Count: 1, Last: storeEpoch}}}
	counts("folded", first)
	counts("folded again", first)
	made(ann, "base", storeEpoch, false)
	counts("one more that is not folded", first)
	last = all()
	first[ann]["base"] = nacre.TemplateUse{Count: 4, Last: hour}
	counts("one more", first)

	// What no template is called any more for a team is not kept.
	own := nacre.Template{ID: "t0000000000000000001", TeamID: ann, Names: []string{"my own é"}, Build: "b0000000000000000001", CreatedAt: storeEpoch, UpdatedAt: storeEpoch}
	base := own
	base.ID, base.TeamID, base.Public, base.Names = "t0000000000000000002", "", true, []string{"base"}
	made(bob, "my own é", storeEpoch, false)
	made(bob, string(base.ID), storeEpoch, false)
	last = all()
	first[bob]["my own é"] = nacre.TemplateUse{Count: 1, Last: storeEpoch}
	first[bob][string(base.ID)] = nacre.TemplateUse{Count: 1, Last: storeEpoch}
	counts("of templates that are put later", first)
	put := func(t *testing.T, tpl nacre.Template) {
		t.Helper()
		if err := store.PutTemplate(t.Context(), tpl); err != nil {
			t.Fatal(err)
		}
	}
	put(t, base)
	delete(first[ann], "my own é")
	delete(first[bob], "my own é")
	counts("of names that there are", first)
	made(ann, "my own é", storeEpoch, false)
	made(bob, "my own é", storeEpoch, false)
	last = all()
	put(t, own)
	first[ann]["my own é"] = nacre.TemplateUse{Count: 1, Last: storeEpoch}
	first[bob]["my own é"] = nacre.TemplateUse{Count: 1, Last: storeEpoch}
	counts("of one's own name, and one that is not", first)
	base.Names = []string{"other"}
	put(t, base)
	delete(first[ann], "base")
	delete(first[bob], "base")
	delete(first[bob], "my own é")
	counts("of a template that is called otherwise", first)
}
