package e2e

import (
	"testing"
	"time"
)

// patience is how long is waited for what is not promised to be done in a time, and only
// must not hang.
const patience = time.Minute

// inTime holds a promise of time.
func inTime(t testing.TB, within time.Duration, what string, try func() time.Duration) {
	t.Helper()
	took := try().Round(time.Millisecond)
	t.Logf("%s after %s", what, took)
	if took > slow(within) {
		t.Errorf("%s after %s, and not within %s", what, took, within)
	}
}
