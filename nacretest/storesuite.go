package nacretest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nacrehq/nacre"
)

// storeEpoch is where the suites' times begin; whole microseconds, as stores keep.
var storeEpoch = time.Date(2026, 3, 4, 5, 6, 7, 123456000, time.UTC)

// SampleSandbox returns a record in the state given with every field set but
// Snapshot, which must name one that exists.
func SampleSandbox(team nacre.TeamID, state nacre.State) nacre.Sandbox {
	return nacre.Sandbox{
		ID: nacre.NewSandboxID(), TeamID: team,
		Template: "base", TemplateID: nacre.NewTemplateID(), BuildID: nacre.NewBuildID(),
		Node: "node-1", Machine: nacre.NewMachineID(),
		State: state, EndReason: nacre.EndKilled, Detail: "ended by its owner, \"quoted\" \u2028 \x00 é",
		Runtime:   "gvisor",
		Resources: nacre.Resources{CPUs: 2, MemoryMiB: 512, DiskMiB: 1024, MaxPIDs: 300},
		Metadata:  map[string]string{"user": "ann", "a b": "c&d=é+1"},
		Env:       map[string]string{"TOKEN": "s3cret\n", "EMPTY": ""},
		Network: nacre.NetworkPolicy{DenyInternet: true, AllowOut: []string{"1.1.1.1"}, DenyOut: []string{"10.0.0.0/8"},
			PrivateTraffic: true, MaskRequestHost: "localhost:${PORT}"},
		Secure: true, Timeout: 5*time.Minute + time.Nanosecond, OnTimeout: nacre.TimeoutPause, TokenEpoch: 3,
		CreatedAt: storeEpoch, StartedAt: storeEpoch.Add(time.Microsecond), Deadline: storeEpoch.Add(5 * time.Minute),
		Name: "my \"box\" é", Parent: nacre.NewSandboxID(), Origin: nacre.NewSnapshotID(), AutoResume: true, FilesOnly: true,
		IdleTimeout: 11*time.Minute + time.Nanosecond, AlwaysOn: true, PausedAt: storeEpoch.Add(2 * time.Minute),
		EndedAt: storeEpoch.Add(time.Hour), BootPath: nacre.BootStandby, BootTime: 7 * time.Millisecond,
	}
}

// TestSandboxStore is the contract of nacre.SandboxStore. open returns a store
// that may hold other teams' records already.
func TestSandboxStore(t *testing.T, open func(t *testing.T) nacre.SandboxStore) {
	store := open(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, nacre.SandboxStore)
	}{
		{"RoundTrip", sandboxRoundTrip},
		{"InsertTwice", sandboxInsertTwice},
		{"BadRecords", sandboxBadRecords},
		{"Fault30_HostileIDs", sandboxHostileIDs},
		{"Fault36_TwoTeams", sandboxTwoTeams},
		{"Update", sandboxUpdate},
		{"UpdateRefusesTheFixed", sandboxUpdateFixed},
		{"UpdateErrorChangesNothing", sandboxUpdateError},
		{"UpdatePanicHurtsNobodyElse", sandboxUpdatePanic},
		{"Transitions", sandboxTransitions},
		{"ConcurrentUpdates", sandboxConcurrentUpdates},
		{"ConcurrentInsertsOfOneID", sandboxConcurrentInserts},
		{"EndedContext", sandboxEndedContext},
		{"Wire1_4_ListOrderAndPages", sandboxListPages},
		{"ListFilters", sandboxListFilters},
		{"Wire1_4_ListMetadataIsExact", sandboxListMetadata},
		{"ListFollowsUpdates", sandboxListFollowsUpdates},
		{"ListCursors", sandboxListCursors},
		{"ListWithoutTeam", sandboxListWithoutTeam},
		{"Purge", sandboxPurge},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, store) })
	}
}

func mustInsert(t testing.TB, store nacre.SandboxStore, s nacre.Sandbox, events ...nacre.Event) nacre.Sandbox {
	t.Helper()
	if err := store.Insert(t.Context(), s, events...); err != nil {
		t.Fatalf("Insert: %v", err)
	}
	return s
}

func expectCode(t testing.TB, what string, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Errorf("%s: error %v, want code %s", what, err, code)
	}
}

// reporter is what *testing.T and *rapid.T have in common here.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

func expectSame(t reporter, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func sandboxRoundTrip(t *testing.T, store nacre.SandboxStore) {
	team := nacre.NewTeamID()
	full := SampleSandbox(team, nacre.StateRunning)
	bare := nacre.Sandbox{ID: nacre.NewSandboxID(), TeamID: team, State: nacre.StateCreating}
	empty := nacre.Sandbox{ID: nacre.NewSandboxID(), TeamID: team, State: nacre.StateCreating,
		Metadata: map[string]string{}, Env: map[string]string{}, Network: nacre.NetworkPolicy{AllowOut: []string{}}}
	old := SampleSandbox(team, nacre.StatePaused)
	old.CreatedAt = time.Date(1969, 1, 2, 3, 4, 5, 678000, time.UTC)
	for _, s := range []nacre.Sandbox{full, bare, empty, old} {
		mustInsert(t, store, s)
		got, err := store.Get(t.Context(), team, s.ID)
		if err != nil {
			t.Fatal(err)
		}
		expectSame(t, "record", got, s)
	}
	// Digits below a microsecond, and the zone, are all that is lost.
	fine := SampleSandbox(team, nacre.StateRunning)
	fine.StartedAt = storeEpoch.Add(1999 * time.Nanosecond).In(time.FixedZone("x", 3600))
	mustInsert(t, store, fine)
	got, err := store.Get(t.Context(), team, fine.ID)
	if err != nil {
		t.Fatal(err)
	}
	if want := storeEpoch.Add(1 * time.Microsecond); got.StartedAt != want {
		t.Errorf("StartedAt %v, want %v", got.StartedAt, want)
	}
}

func sandboxInsertTwice(t *testing.T, store nacre.SandboxStore) {
	s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	again := SampleSandbox(nacre.NewTeamID(), nacre.StatePaused)
	again.ID = s.ID
	again.Metadata = map[string]string{"thief": "yes"}
	expectCode(t, "second insert", store.Insert(t.Context(), again, nacre.Event{Kind: nacre.EventCreated}), nacre.CodeConflict)
	got, err := store.Get(t.Context(), s.TeamID, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "first record", got, s)
	page, err := store.List(t.Context(), nacre.SandboxFilter{TeamID: again.TeamID, Metadata: again.Metadata})
	if err != nil || len(page.Sandboxes) != 0 {
		t.Errorf("the refused record is listed: %v, %v", page, err)
	}
	if log, ok := store.(nacre.EventLog); ok {
		events, err := log.Events(t.Context(), nacre.EventFilter{AllTeams: true, SandboxID: s.ID})
		if err != nil || len(events) != 0 {
			t.Errorf("the refused record left events: %v, %v", events, err)
		}
	}
}

func sandboxBadRecords(t *testing.T, store nacre.SandboxStore) {
	for _, c := range []struct {
		name string
		set  func(*nacre.Sandbox)
	}{
		{"no id", func(s *nacre.Sandbox) { s.ID = "" }},
		{"bad id", func(s *nacre.Sandbox) { s.ID = "../etc/passwd" }},
		{"no team", func(s *nacre.Sandbox) { s.TeamID = "" }},
		{"unknown state", func(s *nacre.Sandbox) { s.State = "asleep" }},
		{"no state", func(s *nacre.Sandbox) { s.State = "" }},
		{"metadata that is not text", func(s *nacre.Sandbox) { s.Metadata = map[string]string{"a": "\xff"} }},
		{"environment that is not text", func(s *nacre.Sandbox) { s.Env = map[string]string{"\xc3\x28": "a"} }},
	} {
		s := SampleSandbox(nacre.NewTeamID(), nacre.StateRunning)
		c.set(&s)
		expectCode(t, c.name, store.Insert(t.Context(), s), nacre.CodeInvalid)
	}
}

// hostile texts stand where an id or a name is expected.
var hostile = []string{
	"", " ", "/", "..", "../..", "i' OR '1'='1", "i\"; DROP TABLE sandboxes; --", "%", "_", "*", "\x00", "i\x00" + strings.Repeat("a", 19),
	"\xff\xfe", "i" + strings.Repeat("é", 10), "i" + strings.Repeat("A", 20), "i" + strings.Repeat("a", 21), "x\r\nlevel=ERROR msg=forged",
	"$(reboot)", "`id`", strings.Repeat("i", 1<<20), "{}", "null", "?", "$1", ":id",
}

func sandboxHostileIDs(t *testing.T, store nacre.SandboxStore) {
	team := nacre.NewTeamID()
	s := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	for _, id := range hostile {
		name := fmt.Sprintf("%.40q", id)
		_, err := store.Get(t.Context(), team, nacre.SandboxID(id))
		expectCode(t, "Get "+name, err, nacre.CodeNotFound)
		_, err = store.Get(t.Context(), nacre.TeamID(id), s.ID)
		expectCode(t, "Get by team "+name, err, nacre.CodeNotFound)
		_, err = store.Update(t.Context(), team, nacre.SandboxID(id), noChange)
		expectCode(t, "Update "+name, err, nacre.CodeNotFound)
		for _, f := range []nacre.SandboxFilter{
			{TeamID: team, IDs: []nacre.SandboxID{nacre.SandboxID(id)}},
			{TeamID: team, Node: nacre.NodeID("x" + id)},
			{TeamID: team, States: []nacre.State{nacre.State(id)}},
			{TeamID: team, Metadata: map[string]string{id: id}},
			{TeamID: nacre.TeamID("x" + id)},
		} {
			page, err := store.List(t.Context(), f)
			if err != nil || len(page.Sandboxes) != 0 {
				t.Errorf("List with %s: %d records, %v", name, len(page.Sandboxes), err)
			}
		}
	}
}

func noChange(*nacre.Sandbox) ([]nacre.Event, error) { return nil, nil }

func sandboxTwoTeams(t *testing.T, store nacre.SandboxStore) {
	ann, bob := nacre.NewTeamID(), nacre.NewTeamID()
	s := SampleSandbox(ann, nacre.StateRunning)
	s.Node = "node-of-two-teams"
	mustInsert(t, store, s)
	for _, team := range []nacre.TeamID{bob, ""} {
		_, err := store.Get(t.Context(), team, s.ID)
		expectCode(t, "Get", err, nacre.CodeNotFound)
		called := false
		_, err = store.Update(t.Context(), team, s.ID, func(*nacre.Sandbox) ([]nacre.Event, error) { called = true; return nil, nil })
		expectCode(t, "Update", err, nacre.CodeNotFound)
		if called {
			t.Error("Update showed another team's record to change")
		}
		for _, f := range []nacre.SandboxFilter{
			{}, {IDs: []nacre.SandboxID{s.ID}}, {States: []nacre.State{s.State}}, {Metadata: s.Metadata}, {Metadata: map[string]string{"user": "ann"}},
			{Node: s.Node}, {DeadlineBefore: s.Deadline}, {Metadata: s.Metadata, Node: s.Node, DeadlineBefore: s.Deadline, IDs: []nacre.SandboxID{s.ID}},
		} {
			f.TeamID = team
			page, err := store.List(t.Context(), f)
			n, cerr := store.Count(t.Context(), f)
			if err != nil || cerr != nil || len(page.Sandboxes) != 0 || n != 0 {
				t.Errorf("filter %+v finds %d, counts %d (%v, %v)", f, len(page.Sandboxes), n, err, cerr)
			}
		}
	}
	got, err := store.Get(t.Context(), ann, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "the owner's record", got, s)
}

func sandboxUpdate(t *testing.T, store nacre.SandboxStore) {
	s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	want := s
	want.State, want.Machine, want.Node = nacre.StateStopping, "", ""
	want.Deadline = storeEpoch.Add(9 * time.Hour)
	want.Metadata = map[string]string{"user": "bob"}
	want.Env = map[string]string{"NEW": "1"}
	want.Version = 1
	got, err := store.Update(t.Context(), s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		expectSame(t, "what change is given", *r, s)
		v := want
		v.Version = 77 // the store's business
		v.Deadline = v.Deadline.Add(999 * time.Nanosecond)
		*r = v
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "what Update returns", got, want)
	kept, err := store.Get(t.Context(), s.TeamID, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "what is kept", kept, want)
	// Maps changed in place count too.
	_, err = store.Update(t.Context(), s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		r.Metadata["more"] = "1"
		r.Env["NEW"] = "2"
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	kept, err = store.Get(t.Context(), s.TeamID, s.ID)
	if err != nil || kept.Metadata["more"] != "1" || kept.Env["NEW"] != "2" || kept.Version != 2 {
		t.Errorf("after a change in place: %+v, %v", kept, err)
	}
}

func sandboxUpdateFixed(t *testing.T, store nacre.SandboxStore) {
	s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	for name, change := range map[string]func(*nacre.Sandbox){
		"ID":        func(r *nacre.Sandbox) { r.ID = nacre.NewSandboxID() },
		"TeamID":    func(r *nacre.Sandbox) { r.TeamID = nacre.NewTeamID() },
		"CreatedAt": func(r *nacre.Sandbox) { r.CreatedAt = r.CreatedAt.Add(time.Second) },
		"Metadata":  func(r *nacre.Sandbox) { r.Metadata["\xff"] = "" },
		"State":     func(r *nacre.Sandbox) { r.State = "asleep" },
	} {
		_, err := store.Update(t.Context(), s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) { change(r); return nil, nil })
		expectCode(t, name, err, nacre.CodeInvalid)
	}
	got, err := store.Get(t.Context(), s.TeamID, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "record", got, s)
}

func sandboxUpdateError(t *testing.T, store nacre.SandboxStore) {
	s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	mine := errors.New("changed my mind")
	_, err := store.Update(t.Context(), s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		r.State, r.Metadata["user"] = nacre.StateEnded, "nobody"
		return []nacre.Event{{Kind: nacre.EventEnded}}, mine
	})
	if err != mine {
		t.Errorf("error %v, want change's own", err)
	}
	got, err := store.Get(t.Context(), s.TeamID, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "record", got, s)
}

func sandboxUpdatePanic(t *testing.T, store nacre.SandboxStore) {
	s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			_, err := store.Update(t.Context(), s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
				if i%4 == 0 {
					panic("a bug in a caller")
				}
				r.TokenEpoch++
				return nil, nil
			})
			if i%4 == 0 {
				expectCode(t, "panic", err, nacre.CodeInternal)
			} else if err != nil {
				t.Errorf("a neighbour of a panic: %v", err)
			}
		})
	}
	wg.Wait()
	got, err := store.Get(t.Context(), s.TeamID, s.ID)
	if err != nil || got.TokenEpoch != s.TokenEpoch+30 || got.Version != 30 {
		t.Errorf("epoch %d version %d, want %d and 30 (%v)", got.TokenEpoch, got.Version, s.TokenEpoch+30, err)
	}
}

func sandboxTransitions(t *testing.T, store nacre.SandboxStore) {
	for from := range nacre.Transitions {
		for to := range nacre.Transitions {
			s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), from))
			_, err := store.Update(t.Context(), s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
				r.State = to
				return nil, nil
			})
			switch {
			case from == to || nacre.CanMove(from, to):
				if err != nil {
					t.Errorf("%s -> %s: %v", from, to, err)
				}
			default:
				expectCode(t, fmt.Sprintf("%s -> %s", from, to), err, nacre.CodeConflict)
			}
		}
	}
}

func sandboxConcurrentUpdates(t *testing.T, store nacre.SandboxStore) {
	s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	const workers, each = 16, 10
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				_, err := store.Update(t.Context(), s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
					r.TokenEpoch++
					return nil, nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := store.Get(t.Context(), s.TeamID, s.ID)
	if err != nil || got.TokenEpoch != s.TokenEpoch+workers*each || got.Version != workers*each {
		t.Errorf("%d updates left epoch %d, version %d (%v)", workers*each, got.TokenEpoch, got.Version, err)
	}
}

func sandboxConcurrentInserts(t *testing.T, store nacre.SandboxStore) {
	s := SampleSandbox(nacre.NewTeamID(), nacre.StateRunning)
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { errs[i] = store.Insert(t.Context(), s) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			expectCode(t, "a late insert", err, nacre.CodeConflict)
		}
	}
	if won != 1 {
		t.Errorf("%d inserts of one id were taken", won)
	}
}

func sandboxEndedContext(t *testing.T, store nacre.SandboxStore) {
	s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	fresh := SampleSandbox(s.TeamID, nacre.StateRunning)
	_, getErr := store.Get(ctx, s.TeamID, s.ID)
	_, listErr := store.List(ctx, nacre.SandboxFilter{TeamID: s.TeamID})
	_, countErr := store.Count(ctx, nacre.SandboxFilter{TeamID: s.TeamID})
	_, updateErr := store.Update(ctx, s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) { r.TokenEpoch++; return nil, nil })
	for what, err := range map[string]error{"Insert": store.Insert(ctx, fresh), "Get": getErr, "List": listErr, "Count": countErr, "Update": updateErr} {
		expectCode(t, what, err, nacre.CodeDeadline)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v does not tell the context's error", what, err)
		}
	}
	got, err := store.Get(t.Context(), s.TeamID, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "record", got, s)
	_, err = store.Get(t.Context(), fresh.TeamID, fresh.ID)
	expectCode(t, "the record of the ended insert", err, nacre.CodeNotFound)
}
