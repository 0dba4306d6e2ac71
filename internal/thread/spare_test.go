package thread

import (
	"os"
	"testing"
)

// TestSpare: the threads are there, and are used before others are made.
func TestSpare(t *testing.T) {
	count := func() int {
		t.Helper()
		all, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	const n = 24
	Spare(n)
	first := count()
	Spare(n)
	if again := count(); first <= n || again > first+2 { // two that the runtime may want meanwhile
		t.Errorf("%d threads, then %d, want more than %d and no more again", first, again, n)
	}
}
