package e2e

import (
	"testing"
	"time"
)

// patience is how long is waited for what is not promised to be done in a time, and only
// must not hang.
const patience = time.Minute

// inTime holds a promise of time on a host that has other things to do too: of three
// tries one keeps it. What has become slow keeps it in none of them.
func inTime(t testing.TB, within time.Duration, what string, try func() time.Duration) {
	t.Helper()
	var took []time.Duration
	for range 3 {
		d := try().Round(time.Millisecond)
		if took = append(took, d); d <= slow(within) {
			t.Logf("%s after %v", what, took)
			return
		}
	}
	t.Errorf("%s after %v, and not within %s", what, took, within)
}
