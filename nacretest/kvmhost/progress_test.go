package kvmhost

import (
	"strings"
	"testing"
	"time"
)

// TestProgress: what a host that stood still had done is not done again, what it was
// at is, and a failure is not forgotten.
func TestProgress(t *testing.T) {
	var p progress
	shown := 0
	for line := range strings.Lines(`=== RUN   TestA
--- PASS: TestA (0.10s)
=== RUN   TestRuntime
=== RUN   TestRuntime/Boot
KVMHOST-RESULT PASS TestRuntime/Boot/deeper
KVMHOST-RESULT PASS TestRuntime/Boot
KVMHOST-RESULT PASS TestRuntime/Boot
=== RUN   TestRuntime/Stop.It
KVMHOST-RESULT FAIL TestRuntime/Stop.It
    x.go:1: --- PASS: TestQuoted (1s)
=== RUN   TestRuntime/Dial
`) {
		if p.see(line) {
			shown++
		}
	}
	if want := `^TestA$|^TestRuntime$/^Boot$|^TestRuntime$/^Stop\.It$`; p.skip() != want {
		t.Errorf("skips %s, want %s", p.skip(), want)
	}
	if strings.Join(p.failed, " ") != "TestRuntime/Stop.It" || p.now != "TestRuntime/Dial" {
		t.Errorf("failed %v, at %s", p.failed, p.now)
	}
	if shown != 7 {
		t.Errorf("%d lines are for people, want 7", shown)
	}
}

func TestWithout(t *testing.T) {
	for _, c := range []struct{ args, skip, want string }{
		{"-test.run=.", "", "-test.run=."},
		{"-test.run=.", "^A$", "-test.skip=^A$ -test.run=."},
		{"-test.skip=B -test.run=.", "^A$", "-test.skip=B|^A$ -test.run=."},
	} {
		if got := strings.Join(without(strings.Fields(c.args), c.skip), " "); got != c.want {
			t.Errorf("%s without %q is %s, want %s", c.args, c.skip, got, c.want)
		}
	}
}

func TestEnding(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-test.run=.", "-test.timeout=1m30s -test.run=."},
		{"-test.timeout=1h0m0s -test.run=.", "-test.timeout=1m30s -test.run=."},
		{"-test.timeout=0s", "-test.timeout=1m30s"},
		{"-test.run=. -test.timeout=10s", "-test.run=. -test.timeout=10s"},
	} {
		if got := strings.Join(ending(strings.Fields(c.args), 90*time.Second), " "); got != c.want {
			t.Errorf("%s becomes %s, want %s", c.args, got, c.want)
		}
	}
	if got := ending(nil, -time.Hour); got[0] != "-test.timeout=1s" {
		t.Errorf("too late: %s", got)
	}
}
