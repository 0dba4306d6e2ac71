package control_test

import (
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/runtime/mixed"
)

func driver(name nacre.RuntimeName) nacre.Capabilities {
	return nacre.Capabilities{Runtime: name, Snapshots: true, RestoreKey: string(name) + "/1/test"}
}

// with gives the next daemon these drivers.
func (w *world) with(cs ...nacre.Capabilities) {
	w.tweak = func(cfg *node.Config) {
		var made []nacre.Runtime
		for _, c := range cs {
			made = append(made, w.host.Daemon().Driver(c))
		}
		r, err := mixed.New(made, nil)
		if err != nil {
			w.tb.Fatal(err)
		}
		cfg.Runtime = r
	}
}

func names(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(nacre.ErrorMessage(err), word) {
			t.Errorf("%q does not name %s", nacre.ErrorMessage(err), word)
		}
	}
}

// TestACreateAsksForARuntime: the create's word goes before the template's, that
// before the host's default; a pause, a fork and a snapshot stay on it.
func TestACreateAsksForARuntime(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), driver("two"))
	w.start()
	if err := w.db.PutTemplate(t.Context(), nacre.Template{ID: "t0000000000000000002", Names: []string{"second"}, Public: true, Build: build,
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 64}, Runtime: "two"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		template    string
		asked, want nacre.RuntimeName
	}{{"base", "", "one"}, {"base", "two", "two"}, {"second", "", "two"}, {"second", "one", "one"}} {
		s := w.create(nacre.CreateRequest{Template: c.template, Runtime: c.asked})
		if s.Runtime != c.want || w.get(s.ID).Runtime != c.want || w.host.Machine(s.Machine).Runtime != c.want {
			t.Errorf("%+v: %s", c, s.Runtime)
		}
	}
	s := w.create(nacre.CreateRequest{Runtime: "two"})
	w.pause(s.ID)
	if s = w.resume(s.ID); s.Runtime != "two" || w.host.Machine(s.Machine).Runtime != "two" {
		t.Errorf("resumed: %+v", s)
	}
	n := w.snapshot(s.ID, nacre.SnapshotRequest{Name: "kept"})
	forks, err := w.svc.Fork(t.Context(), team, nacre.ForkRequest{Sandbox: s.ID})
	if err != nil || forks[0].Err != nil || forks[0].Sandbox.Runtime != "two" {
		t.Errorf("a fork: %+v, %v", forks, err)
	}
	if s := w.create(nacre.CreateRequest{Template: "kept"}); s.Runtime != "two" || w.host.Machine(s.Machine).Runtime != "two" {
		t.Errorf("of a snapshot: %+v", s)
	}
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{Template: "kept", Runtime: "one"})
	wantCode(t, err, nacre.CodeInvalid)
	names(t, err, "one", "two", string(n.ID))
}

// TestARuntimeThatIsNotOffered: a create that asks for it is told what there is, and
// leaves no record; what is bound to it stays as it is until it is offered again.
func TestARuntimeThatIsNotOffered(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), driver("two"))
	w.start()
	s := w.create(nacre.CreateRequest{Runtime: "two"})
	n := w.snapshot(s.ID, nacre.SnapshotRequest{})
	w.pause(s.ID)
	if err := w.db.PutTemplate(t.Context(), nacre.Template{ID: "t0000000000000000002", Names: []string{"second"}, Public: true, Build: build,
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 64}, Runtime: "two"}); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.with(driver("one"))
	w.start()
	_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{Runtime: "two"})
	wantCode(t, err, nacre.CodeInvalid)
	names(t, err, "two", "one")
	if nacre.ErrorField(err) != "Runtime" {
		t.Errorf("field %q", nacre.ErrorField(err))
	}
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{Template: "second"})
	wantCode(t, err, nacre.CodeConflict)
	names(t, err, "two", "one")
	if s := w.create(nacre.CreateRequest{Template: "second", Runtime: "one"}); s.Runtime != "one" {
		t.Errorf("%+v", s)
	}
	_, _, err = w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{})
	wantCode(t, err, nacre.CodeMismatch)
	names(t, err, "two/1/test", "one")
	if got := w.get(s.ID); got.State != nacre.StatePaused {
		t.Errorf("it is %s", got.State)
	}
	for what, do := range map[string]func() error{
		"restore": func() error { _, err := w.svc.Restore(t.Context(), team, s.ID, n.ID); return err },
		"fork": func() error {
			_, err := w.svc.Fork(t.Context(), team, nacre.ForkRequest{Snapshot: n.ID})
			return err
		},
		"create": func() error {
			_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{Template: string(n.ID)})
			return err
		},
	} {
		err := do()
		if !nacre.IsCode(err, nacre.CodeMismatch) {
			t.Errorf("%s: %v", what, err)
		}
		names(t, err, "two/1/test", "one")
	}
	all, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{})
	if err != nil || len(all.Sandboxes) != 2 {
		t.Errorf("%d records, %v", len(all.Sandboxes), err)
	}
	w.stop()
	w.with(driver("one"), driver("two"))
	w.start()
	if got := w.resume(s.ID); got.Runtime != "two" {
		t.Errorf("%+v", got)
	}
}

// TestWarmTemplatesHaveARuntime: the state behind a start command is kept on the
// template's runtime; a create on another boots, and when the template's changes the
// state is made anew.
func TestWarmTemplatesHaveARuntime(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), driver("two"))
	w.start()
	tpl, err := w.db.ResolveTemplate(t.Context(), team, "base")
	if err != nil {
		t.Fatal(err)
	}
	tpl.Start, tpl.Ready = "echo warm", "true"
	if tpl, err = w.svc.PrepareWarm(t.Context(), tpl); err != nil {
		t.Fatal(err)
	}
	for asked, want := range map[nacre.RuntimeName]nacre.BootPath{"": nacre.BootWarm, "one": nacre.BootWarm, "two": nacre.BootCold} {
		if s := w.create(nacre.CreateRequest{Runtime: asked}); s.BootPath != want || asked != "" && s.Runtime != asked {
			t.Errorf("asked for %q: %s on %s", asked, s.BootPath, s.Runtime)
		}
	}
	old := tpl.Warm
	tpl.Runtime = "two"
	if tpl, err = w.svc.PrepareWarm(t.Context(), tpl); err != nil || tpl.Warm == old {
		t.Fatalf("not made anew: %v", err)
	}
	for asked, want := range map[nacre.RuntimeName]nacre.BootPath{"": nacre.BootWarm, "two": nacre.BootWarm, "one": nacre.BootCold} {
		if s := w.create(nacre.CreateRequest{Runtime: asked}); s.BootPath != want || s.Runtime == "one" && asked == "" {
			t.Errorf("asked for %q: %s on %s", asked, s.BootPath, s.Runtime)
		}
	}
	// The host's default changes: the state of before is not used for it.
	tpl.Runtime = ""
	if err := w.db.PutTemplate(t.Context(), tpl); err != nil {
		t.Fatal(err)
	}
	if s := w.create(nacre.CreateRequest{}); s.Runtime != "one" || s.BootPath != nacre.BootCold {
		t.Errorf("%s on %s", s.BootPath, s.Runtime)
	}
}

// TestWhatARuntimeCannotDo: it is said by its name, as the caller's to change.
func TestWhatARuntimeCannotDo(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), nacre.Capabilities{Runtime: "plain"})
	w.start()
	_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{Runtime: "plain", OnTimeout: nacre.TimeoutPause})
	wantCode(t, err, nacre.CodeInvalid)
	names(t, err, "plain")
	s := w.create(nacre.CreateRequest{Runtime: "plain"})
	_, err = w.svc.Pause(t.Context(), team, s.ID, nacre.PauseRequest{})
	wantCode(t, err, nacre.CodeConflict)
	names(t, err, "plain")
	_, err = w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{})
	wantCode(t, err, nacre.CodeConflict)
	_, err = w.svc.Fork(t.Context(), team, nacre.ForkRequest{Sandbox: s.ID})
	wantCode(t, err, nacre.CodeConflict)
	names(t, err, "plain")
	if got := w.get(s.ID); got.State != nacre.StateRunning {
		t.Errorf("it is %s", got.State)
	}
}

// TestAPausedSandboxOfAServerWithOneRuntime: its record says no runtime, and it resumes.
func TestAPausedSandboxOfAServerWithOneRuntime(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"))
	w.start()
	s := w.create(nacre.CreateRequest{})
	w.pause(s.ID)
	if _, err := w.db.Update(t.Context(), team, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) { r.Runtime = ""; return nil, nil }); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.with(driver("two"), driver("one"))
	w.start()
	if got := w.resume(s.ID); got.Runtime != "one" {
		t.Errorf("%+v", got)
	}
}

// TestATemplatesPages: what its sandboxes' memory is made of is the template's word; a
// create on a runtime without such pages has ordinary ones, and a template that is given
// others is made warm anew.
func TestATemplatesPages(t *testing.T) {
	w := newWorld(t)
	large := driver("large")
	large.HugePages = true
	w.with(driver("one"), large)
	w.start()
	tpl := nacre.Template{ID: "t0000000000000000002", Names: []string{"second"}, Public: true, Build: build,
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 64, HugePages: true}, Runtime: "large"}
	if err := w.db.PutTemplate(t.Context(), tpl); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		template string
		asked    nacre.RuntimeName
		want     bool
	}{{"second", "", true}, {"second", "one", false}, {"base", "large", false}} {
		s := w.create(nacre.CreateRequest{Template: c.template, Runtime: c.asked})
		if got := w.host.Machine(s.Machine).Spec.Resources.HugePages; got != c.want || s.Resources.HugePages != c.want {
			t.Errorf("%+v: the record says %t, the machine has %t", c, s.Resources.HugePages, got)
		}
	}
	s := w.create(nacre.CreateRequest{Template: "second"})
	w.pause(s.ID)
	back, _, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{})
	if err != nil || !w.host.Machine(back.Machine).Spec.Resources.HugePages {
		t.Errorf("resumed: %+v, %v", back.Resources, err)
	}
	tpl.Start, tpl.Ready = "echo warm", "true"
	tpl, err = w.svc.PrepareWarm(t.Context(), tpl)
	if err != nil {
		t.Fatal(err)
	}
	old := tpl.Warm
	tpl.Resources.HugePages = false
	if tpl, err = w.svc.PrepareWarm(t.Context(), tpl); err != nil || tpl.Warm == old {
		t.Errorf("not made anew: %v", err)
	}
}
