package miosa

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestThousandEventStreams: a thousand readers of one sandbox's events all see each,
// and what is held for them does not grow with what they have seen.
func TestThousandEventStreams(t *testing.T) {
	const readers = 1000
	h := newHarness(t)
	id := h.create(`{}`)
	srv := httptest.NewServer(h.api)
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 0, DisableCompression: true}}
	var seen atomic.Int64
	var wg sync.WaitGroup
	for range readers {
		req, err := http.NewRequestWithContext(ctx, "GET", srv.URL+Prefix+"/sandboxes/"+id+"/events?types=sandbox.file.changed", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+h.keyA)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer resp.Body.Close()
			lines := bufio.NewScanner(resp.Body)
			for lines.Scan() {
				if strings.HasPrefix(lines.Text(), "event: sandbox.file.changed") {
					seen.Add(1)
				}
			}
		})
	}
	write := func(n int64) {
		t.Helper()
		want := seen.Load() + n*readers
		for range n {
			e := nacre.Event{Time: time.Now(), TeamID: h.teamA, SandboxID: nacre.SandboxID(id), Kind: nacre.EventFileChanged,
				Data: map[string]string{"path": "/workspace/f", "op": "write"}}
			if err := h.db.AppendEvents(t.Context(), []nacre.Event{e}); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.Now().Add(60 * time.Second); seen.Load() < want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d events were seen, want %d", seen.Load(), want)
			}
		}
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	write(20)
	before := heap()
	write(100)
	after := heap()
	t.Logf("%d readers, both ends: %d KiB, and %d KiB after a hundred thousand more deliveries", readers, before>>10, after>>10)
	if grown := after - before; grown > 16<<20 {
		t.Errorf("memory grew by %d KiB", grown>>10)
	}
	cancel()
	wg.Wait()
}
