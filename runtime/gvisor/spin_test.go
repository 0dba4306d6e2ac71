package gvisor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSpinsLate: nothing spins in a guest that has just begun to work.
func TestSpinsLate(t *testing.T) {
	now := time.Hour
	allowed := true
	told := 0
	s := newSpin(func(a bool) { allowed = a; told++ })
	work := func(d, every time.Duration) {
		for end := now + d; now < end; now += every {
			s.works(int64(now))
		}
	}
	for _, step := range []struct {
		what    string
		idle    time.Duration
		work    time.Duration
		every   time.Duration
		allowed bool
	}{
		{"the boot", 0, time.Millisecond, time.Microsecond, true},
		{"a command", time.Second, 20 * time.Millisecond, time.Microsecond, false},
		{"a command soon after", restAfter + time.Millisecond, 20 * time.Millisecond, time.Microsecond, false},
		{"a long one", time.Second, 40 * time.Millisecond, time.Microsecond, true},
		{"more of it", restAfter - time.Millisecond, time.Millisecond, time.Microsecond, true},
		{"the next command", time.Second, time.Millisecond, time.Microsecond, false},
		{"a slow one", time.Second, 40 * time.Millisecond, 4 * time.Millisecond, true},
		{"the clock's alone", time.Second, time.Second, 10 * time.Millisecond, false},
	} {
		now += step.idle
		work(step.work, step.every)
		if allowed != step.allowed {
			t.Errorf("after %s: allowed %v, want %v", step.what, allowed, step.allowed)
		}
	}
	if told != 5 {
		t.Errorf("gVisor was told %d times of 5 changes", told)
	}
}

// TestLatenciesAreGVisors: what is written to by gVisor's name is as large as gVisor's.
func TestLatenciesAreGVisors(t *testing.T) {
	source := systrapSource(t, "metrics.go")
	for _, want := range []string{
		"numLatencyBuckets = 80\n",
		"type latencyBuckets [numLatencyBuckets]atomicbitops.Uint64\n",
		"type latencyRecorder struct {\n\tstubBound   latencyBuckets\n\tsentryBound latencyBuckets\n}\n",
		"var latencies latencyRecorder\n",
		"var neverEnableFastPath bool\n",
	} {
		if !strings.Contains(source, want) {
			t.Errorf("gVisor no longer has %q: fit spin.go to it", want)
		}
	}
}

// systrapSource reads a file of the gVisor in go.mod.
func systrapSource(t *testing.T, file string) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "gvisor.dev/gvisor").Output()
	check(t, err)
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "pkg/sentry/platform/systrap", file))
	check(t, err)
	return string(source)
}
