package control_test

import (
	"maps"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func TestCreateGetListKill(t *testing.T) {
	w := newWorld(t)
	w.start()
	meta := map[string]string{"a b": "c&d=é+1", "user": "", "ключ": "значение"}
	s := w.create(nacre.CreateRequest{Metadata: meta, Env: map[string]string{"K": "v"}, Secure: true})
	if s.State != nacre.StateRunning || s.Machine == "" || s.BootPath == "" {
		t.Fatalf("created: %+v", s)
	}
	if got := s.Deadline.Sub(s.StartedAt); got != 5*time.Minute {
		t.Fatalf("deadline after %s, want the default of 5 minutes", got)
	}
	got := w.get(s.ID)
	if !maps.Equal(got.Metadata, meta) || got.Env["K"] != "v" {
		t.Fatalf("record: %+v", got)
	}
	in, n := w.host.Machine(s.Machine).Guest.Init()
	if n != 1 || in.Env["K"] != "v" || in.AccessToken == "" || len(in.Entropy) < 32 || in.Hostname != string(s.Machine) {
		t.Fatalf("the guest was told %d times: %+v", n, in)
	}
	if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.svc.Kill(t.Context(), team, s.ID); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Fatalf("second kill: %v", err)
	}
	if got := w.get(s.ID); got.State != nacre.StateEnded || got.EndReason != nacre.EndKilled || got.EndedAt.IsZero() {
		t.Fatalf("after the kill: %+v", got)
	}
	if l := w.host.Leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
}
