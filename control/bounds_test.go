package control_test

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// TestFault36_SnapshotsOfAnotherTeam: to another team neither the sandbox nor the
// snapshot is there, whatever is asked.
func TestFault36_SnapshotsOfAnotherTeam(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	n := w.snapshot(s.ID, nacre.SnapshotRequest{Name: "n"})
	mine, err := w.svc.Create(t.Context(), other, nacre.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"pause":             func() error { _, err := w.svc.Pause(t.Context(), other, s.ID, nacre.PauseRequest{}); return err },
		"resume":            func() error { _, _, err := w.svc.Resume(t.Context(), other, s.ID, nacre.ResumeRequest{}); return err },
		"snapshot":          func() error { _, err := w.svc.Snapshot(t.Context(), other, s.ID, nacre.SnapshotRequest{}); return err },
		"restore":           func() error { _, err := w.svc.Restore(t.Context(), other, mine.ID, n.ID); return err },
		"restore of theirs": func() error { _, err := w.svc.Restore(t.Context(), other, s.ID, n.ID); return err },
		"fork":              func() error { _, err := w.svc.Fork(t.Context(), other, nacre.ForkRequest{Sandbox: s.ID}); return err },
		"fork snapshot":     func() error { _, err := w.svc.Fork(t.Context(), other, nacre.ForkRequest{Snapshot: n.ID}); return err },
		"create": func() error {
			_, err := w.svc.Create(t.Context(), other, nacre.CreateRequest{Template: "n"})
			return err
		},
		"create by id": func() error {
			_, err := w.svc.Create(t.Context(), other, nacre.CreateRequest{Template: string(n.ID)})
			return err
		},
		"get":    func() error { _, err := w.svc.GetSnapshot(t.Context(), other, n.ID); return err },
		"delete": func() error { return w.svc.DeleteSnapshot(t.Context(), other, n.ID) },
		"edit":   func() error { _, err := w.svc.Edit(t.Context(), other, s.ID, nacre.EditRequest{}); return err },
	} {
		if err := try(); !nacre.IsCode(err, nacre.CodeNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if page, err := w.svc.ListSnapshots(t.Context(), other, nacre.SnapshotFilter{AllTeams: true}); err != nil || len(page.Snapshots) > 0 {
		t.Fatalf("%+v, %v", page, err)
	}
	if got := w.get(s.ID); got.State != nacre.StateRunning || got.Version != s.Version {
		t.Fatalf("%+v", got)
	}
}

// TestQuotas: paused sandboxes are no running ones, and what is kept is counted.
func TestQuotas(t *testing.T) {
	w := newWorld(t)
	w.limits.MaxPerTeam, w.limits.MaxPaused = 1, 2
	w.start()
	a := w.create(nacre.CreateRequest{})
	_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	w.pause(a.ID)
	b := w.create(nacre.CreateRequest{})
	_, _, err = w.svc.Resume(t.Context(), team, a.ID, nacre.ResumeRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	w.restart()
	_, _, err = w.svc.Resume(t.Context(), team, a.ID, nacre.ResumeRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	if got := w.get(a.ID); got.State != nacre.StatePaused {
		t.Fatalf("%+v", got)
	}
	w.pause(b.ID)
	c := w.create(nacre.CreateRequest{})
	_, err = w.svc.Pause(t.Context(), team, c.ID, nacre.PauseRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	if !strings.Contains(nacre.ErrorMessage(err), "2 paused") {
		t.Fatal(err)
	}
	if err := w.svc.Kill(t.Context(), team, b.ID); err != nil {
		t.Fatal(err)
	}
	w.pause(c.ID)
	w.stop()
	w.limits = control.Limits{MaxSnapshotBytes: 1}
	w.start()
	w.resume(c.ID)
	_, err = w.svc.Snapshot(t.Context(), team, c.ID, nacre.SnapshotRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	if !strings.Contains(nacre.ErrorMessage(err), " bytes of the 1 bytes") {
		t.Fatal(err)
	}
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{OnTimeout: nacre.TimeoutPause})
	wantCode(t, err, nacre.CodeExhausted)
}

// shrunken is a node whose snapshots came to occupy something else.
type shrunken struct {
	nacre.Node
	bytes *atomic.Int64 // of each; 0 for what they were written with
}

func (n shrunken) Snapshots(ctx context.Context) ([]nacre.SnapshotManifest, error) {
	list, err := n.Node.Snapshots(ctx)
	for i := range list {
		if b := n.bytes.Load(); b != 0 {
			list[i].DiskBytes = b
		}
	}
	return list, err
}

// TestQuotaCountsWhatIsOnDisk: what a snapshot occupies changes after it was taken,
// and the quota is of what it occupies now. Nobody is refused for an old figure.
func TestQuotaCountsWhatIsOnDisk(t *testing.T) {
	w := newWorld(t)
	var bytes atomic.Int64
	w.limits.MaxSnapshotBytes = 1000
	w.rules = func(c *control.Config) { c.Node, c.Reconcile = shrunken{c.Node, &bytes}, time.Hour }
	w.start()
	s := w.create(nacre.CreateRequest{})
	first := w.snapshot(s.ID, nacre.SnapshotRequest{})
	if first.DiskBytes < 1000 {
		t.Fatalf("%d bytes", first.DiskBytes)
	}
	_, err := w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	bytes.Store(10)
	w.snapshot(s.ID, nacre.SnapshotRequest{})
	if got, err := w.svc.GetSnapshot(t.Context(), team, first.ID); err != nil || got.DiskBytes != 10 {
		t.Fatalf("%+v, %v", got, err)
	}

	w.rules = func(c *control.Config) { c.Node, c.Reconcile = shrunken{c.Node, &bytes}, time.Millisecond }
	w.restart()
	bytes.Store(2000)
	w.eventually("records follow what is on disk", func() bool {
		got, err := w.svc.GetSnapshot(t.Context(), team, first.ID)
		return err == nil && got.DiskBytes == 2000
	})
	_, err = w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{})
	wantCode(t, err, nacre.CodeExhausted)
}

// TestSnapshotsExpire: at their time, but not while a paused sandbox needs them.
func TestSnapshotsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		s := w.create(nacre.CreateRequest{Timeout: time.Hour})
		short := w.snapshot(s.ID, nacre.SnapshotRequest{Keep: 10 * time.Second})
		long := w.snapshot(s.ID, nacre.SnapshotRequest{})
		w.pause(s.ID)
		held := w.snapshot(s.ID, nacre.SnapshotRequest{Keep: 10 * time.Second})
		time.Sleep(9 * time.Second)
		if _, err := w.svc.GetSnapshot(t.Context(), team, short.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		_, err := w.svc.GetSnapshot(t.Context(), team, short.ID)
		wantCode(t, err, nacre.CodeNotFound)
		for _, n := range []nacre.SnapshotID{long.ID, held.ID} {
			if _, err := w.svc.GetSnapshot(t.Context(), team, n); err != nil {
				t.Fatal(err)
			}
		}
		w.resume(s.ID)
		time.Sleep(10 * time.Second)
		_, err = w.svc.GetSnapshot(t.Context(), team, held.ID)
		wantCode(t, err, nacre.CodeNotFound)
	})
}

// TestIdle: what is not used for its idle time ends; use puts it off, and the wall
// clock's deadline stays what it is. One that is always on has none.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		unused := w.create(nacre.CreateRequest{Timeout: time.Hour, IdleTimeout: 10 * time.Second})
		used := w.create(nacre.CreateRequest{Timeout: time.Hour, IdleTimeout: 10 * time.Second})
		on := w.create(nacre.CreateRequest{Timeout: 10 * time.Second, AlwaysOn: true})
		edited := w.create(nacre.CreateRequest{Timeout: 10 * time.Second, AlwaysOn: true})
		if !on.Deadline.IsZero() {
			t.Fatalf("%+v", on)
		}
		for range 30 {
			time.Sleep(5 * time.Second)
			w.svc.Touch(used.ID)
		}
		if got := w.get(unused.ID); got.EndReason != nacre.EndIdle || got.EndedAt.Sub(got.StartedAt) > 11*time.Second {
			t.Fatalf("unused: %+v", got)
		}
		for _, s := range []nacre.Sandbox{used, on, edited} {
			if got := w.get(s.ID); got.State != nacre.StateRunning {
				t.Fatalf("%+v", got)
			}
		}
		w.restart()
		time.Sleep(5 * time.Second)
		if got := w.get(used.ID); got.State != nacre.StateRunning {
			t.Fatalf("a restart counts as use: %+v", got)
		}
		time.Sleep(6 * time.Second)
		if got := w.get(used.ID); got.EndReason != nacre.EndIdle {
			t.Fatalf("%+v", got)
		}
		off, name := false, "named"
		meta := func(map[string]string) (map[string]string, error) { return map[string]string{"a": "b"}, nil }
		got, err := w.svc.Edit(t.Context(), team, edited.ID, nacre.EditRequest{AlwaysOn: &off, Name: &name, Metadata: meta})
		if err != nil || got.Deadline.IsZero() || got.Name != name || got.Metadata["a"] != "b" {
			t.Fatalf("%+v, %v", got, err)
		}
		time.Sleep(11 * time.Second)
		if got := w.get(edited.ID); got.EndReason != nacre.EndTimeout {
			t.Fatalf("%+v", got)
		}
		if got := w.get(on.ID); got.State != nacre.StateRunning {
			t.Fatalf("%+v", got)
		}
		_, err = w.svc.Edit(t.Context(), team, edited.ID, nacre.EditRequest{Name: &name})
		wantCode(t, err, nacre.CodeNotFound)
	})
}

// TestEditsAtOnce: none loses what another one wrote, one that fails changes nothing,
// and a paused sandbox keeps a new timeout for when it runs.
func TestEditsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Timeout: time.Hour})
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			_, err := w.svc.Edit(t.Context(), team, s.ID, nacre.EditRequest{Metadata: func(m map[string]string) (map[string]string, error) {
				if m == nil {
					m = map[string]string{}
				}
				m[strconv.Itoa(i)] = "x"
				return m, nil
			}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := w.get(s.ID); len(got.Metadata) != 30 {
		t.Fatalf("%d edits are left of 30", len(got.Metadata))
	}
	name, two := "other", 2*time.Hour
	_, err := w.svc.Edit(t.Context(), team, s.ID, nacre.EditRequest{Name: &name, Timeout: &two,
		Metadata: func(map[string]string) (map[string]string, error) { return map[string]string{"": ""}, nil }})
	wantCode(t, err, nacre.CodeInvalid)
	if got := w.get(s.ID); got.Name != "" || got.Timeout != time.Hour {
		t.Fatalf("half an edit: %+v", got)
	}
	w.pause(s.ID)
	if got, err := w.svc.Edit(t.Context(), team, s.ID, nacre.EditRequest{Timeout: &two}); err != nil || got.Timeout != two || got.State != nacre.StatePaused {
		t.Fatalf("%+v %v", got, err)
	}
	w.resume(s.ID)
	if got := w.get(s.ID); got.Deadline.Sub(got.StartedAt) < two-time.Second {
		t.Fatalf("%+v", got)
	}
	got, err := w.svc.Edit(t.Context(), team, s.ID, nacre.EditRequest{Timeout: new(time.Minute)})
	if err != nil || time.Until(got.Deadline) > time.Minute {
		t.Fatalf("%+v %v", got, err)
	}
}

// TestCopiesAreNobodysTwin: what names one sandbox, or says for what it was made, is not
// a copy's, however that is made; the rest is.
func TestCopiesAreNobodysTwin(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Metadata: map[string]string{nacre.LabelSlug: "s", nacre.LabelDeployment: "d", nacre.LabelRequest: "r",
		nacre.LabelWorkspace: "w", "user": "u"}})
	snap := w.snapshot(s.ID, nacre.SnapshotRequest{})
	copies := []nacre.Sandbox{w.create(nacre.CreateRequest{Template: string(snap.ID)})}
	for _, r := range []nacre.ForkRequest{{Sandbox: s.ID}, {Snapshot: snap.ID}} {
		made, err := w.svc.Fork(t.Context(), team, r)
		if err != nil || made[0].Err != nil {
			t.Fatal(made, err)
		}
		copies = append(copies, made[0].Sandbox)
	}
	for _, c := range copies {
		if got := w.get(c.ID).Metadata; len(got) != 2 || got[nacre.LabelWorkspace] != "w" || got["user"] != "u" {
			t.Errorf("a copy has %v", got)
		}
	}
}
