package main

import (
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
)

func TestPauseAndResume(t *testing.T) {
	s := newShell(t)
	a, b := strings.TrimSpace(s.ok("run", "--auto-pause", "--auto-resume")), strings.TrimSpace(s.ok("run"))
	if r := s.cloud.Service.Requests()[0]; r.OnTimeout != nacre.TimeoutPause || !r.AutoResume {
		t.Errorf("%+v", r)
	}
	if got := s.ok("pause", a, b); got != a+"\n"+b+"\n" {
		t.Errorf("pause prints %q", got)
	}
	if got := s.ok("ps"); strings.Count(got, "paused") != 2 || strings.Contains(got, "in ") {
		t.Errorf("ps: %s", got)
	}
	if got := s.fails("pause", a); !strings.Contains(got, "paused") {
		t.Errorf("a second pause: %s", got)
	}
	if got := s.ok("resume", "--timeout", "2h", a); got != a+"\n" {
		t.Errorf("resume prints %q", got)
	}
	if got := s.ok("exec", b, "--", "echo", "awake"); got != "awake\n" {
		t.Errorf("exec in a paused one: %q", got)
	}
	s.ok("pause", "--files-only", a)
	s.ok("resume", "--reboot", a)
	if r := s.cloud.Service.Resumes(); !r[2].Boot || r[0].Boot {
		t.Errorf("resumed with %+v", r)
	}
	s.ok("kill", a)
	out, errOut, err := s.run("pause", "--json", a, b)
	if list := decode[[]outcome](t, out); err == nil || list[0].ID != a || list[0].Error == "" || list[1] != (outcome{ID: b}) {
		t.Errorf("%s %s %v", out, errOut, err)
	}
	if got := s.fails("resume", a); !strings.Contains(got, "ps -a") {
		t.Errorf("resume of a killed one: %s", got)
	}
}

func TestSnapshotsFromTakingToDeleting(t *testing.T) {
	s := newShell(t)
	id := strings.TrimSpace(s.ok("run"))
	plain := strings.TrimSpace(s.ok("snapshot", id))
	if !nacre.SnapshotID(plain).Valid() {
		t.Fatalf("snapshot prints %q, want the id", plain)
	}
	named := decode[struct{ ID, Name string }](t, s.ok("snapshot", id, "--name", "nightly", "--comment", "c\x1b[2J", "--keep", "24h", "--files-only", "--json"))
	if named.Name != "nightly" {
		t.Errorf("%+v", named)
	}
	if got := s.ok("snapshots", "-q"); got != named.ID+"\n"+plain+"\n" {
		t.Errorf("snapshots -q: %q", got)
	}
	if got := s.ok("snapshots", "list", "--name", "nightly"); !strings.Contains(got, "in 23h") || strings.Contains(got, "\x1b") ||
		strings.Contains(got, plain) || !strings.Contains(got, "30.0 MiB") {
		t.Errorf("snapshots: %s", got)
	}
	if got := s.ok("restore", id, plain); got != id+"\n" {
		t.Errorf("restore: %q", got)
	}
	if got := s.fails("restore", id, "nothing"); !strings.Contains(got, "nacre snapshots") {
		t.Errorf("restore to nothing: %s", got)
	}
	if got := s.fails("restore", string(nacre.NewSandboxID()), plain); !strings.Contains(got, "ps -a") {
		t.Errorf("restore of nothing: %s", got)
	}
	for _, from := range []string{plain, "nightly", id} {
		if got := strings.Fields(s.ok("fork", from, "-n", "2", "--metadata", "a=b")); len(got) != 2 || got[0] == got[1] || got[0] == id {
			t.Errorf("fork of %s: %q", from, got)
		}
	}
	if got := s.ok("run", "--template", "nightly"); !nacre.SandboxID(strings.TrimSpace(got)).Valid() {
		t.Errorf("run of a snapshot: %q", got)
	}
	out, errOut, err := s.run("fork", id, "-n", "2", "--metadata", "full=1", "--timeout", "1h", "--auto-pause", "-e", "A=b")
	if err == nil || len(strings.Fields(out)) != 1 || !strings.Contains(errOut, "fork 2 of 2: this host is full") {
		t.Errorf("%q %q %v", out, errOut, err)
	}
	if got := s.fails("fork", "nothing"); !strings.Contains(got, "nacre snapshots") {
		t.Errorf("fork of nothing: %s", got)
	}
	if got := s.ok("snapshots", "delete", plain, "nightly"); got != plain+"\nnightly\n" {
		t.Errorf("delete: %q", got)
	}
	if got := s.fails("snapshots", "delete", plain); !strings.Contains(got, "nacre snapshots") {
		t.Errorf("a second delete: %s", got)
	}
	if got := decode[[]struct{ ID string }](t, s.ok("snapshots", "--json")); got == nil || len(got) != 0 {
		t.Errorf("an empty list in JSON is %v", got)
	}
}
