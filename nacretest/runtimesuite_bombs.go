package nacretest

import (
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func testForkBomb(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	s := h.Spec(t)
	bomb, other := h.boot(t, r, s), h.boot(t, r, h.Spec(t))
	g, o := DialGuest(t, bomb), DialGuest(t, other)
	g.Send("bomb", 5000, "/bin/tool")
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err := g.Answer()
		if err != nil || got.N < 1 || !strings.Contains(got.Err, "temporarily unavailable") {
			t.Errorf("%d children, then %q, %v", got.N, got.Err, err)
		}
	}()
	var slowest time.Duration
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(20 * time.Millisecond):
		}
		begin := time.Now()
		o.Do("ping")
		slowest = max(slowest, time.Since(begin))
		if u, err := bomb.Usage(t.Context()); err == nil && u.PIDs > s.Resources.MaxPIDs {
			t.Fatalf("%d tasks on the host, limit %d", u.PIDs, s.Resources.MaxPIDs)
		}
	}
	t.Logf("slowest answer of a neighbour: %v", slowest)
	g.Do("ping") // refused, not ended
	DialGuest(t, bomb).Do("ping")
	DialGuest(t, other).Do("ping")
}

func testMemoryBomb(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	s := h.Spec(t)
	bomb, other := h.boot(t, r, s), h.boot(t, r, h.Spec(t))
	DialGuest(t, bomb).Send("eat", 4*s.Resources.MemoryMiB)
	if e := wait(t, bomb); e.Reason != nacre.EndOOM {
		t.Errorf("ended with %+v, want oom", e)
	}
	h.clean(t, s)
	// One that is not the guest's first process.
	s = h.Spec(t)
	bomb = h.boot(t, r, s)
	g := DialGuest(t, bomb)
	eat := []any{"/bin/tool", "eat", 4 * s.Resources.MemoryMiB}
	if r.Capabilities().SparesOnOOM {
		if a := g.Try("run", eat...); !strings.Contains(a.Err, "killed") {
			t.Errorf("a child's bomb: it ended with %q (%s)", a.Err, a.Out)
		}
		g.Do("ping")
	} else {
		g.Send("run", eat...)
		if e := wait(t, bomb); e.Reason != nacre.EndOOM {
			t.Errorf("a child's bomb: ended with %+v, want oom", e)
		}
		h.clean(t, s)
	}
	DialGuest(t, other).Do("ping")
}

func testDiskBomb(t *testing.T, h RuntimeHost) {
	s := h.Spec(t)
	m := h.boot(t, h.runtime(t), s)
	g := DialGuest(t, m)
	limit := int64(s.Root.UpperMiB) << 20
	if got := g.Do("disk", "/").N; got != limit {
		t.Errorf("the disk shows %d bytes, want %d", got, limit)
	}
	// /tmp is a part of the disk, not of the memory.
	r := g.Try("write", 2*s.Root.UpperMiB, "/tmp/bomb")
	if !strings.Contains(r.Err, "no space") || r.N > limit || r.N < limit/2 {
		t.Errorf("wrote %d bytes of %d, then %q", r.N, limit, r.Err)
	}
	if r := g.Try("write", 1, "/root/more"); r.Err == "" {
		t.Error("a full disk took more")
	}
	g.Do("run", "/bin/tool", "rm", "/tmp/bomb")
	g.Do("write", 1, "/root/more")
	g.Do("sparse", 100*s.Root.UpperMiB, "/tmp/sparse") // takes no room
	if n := g.Do("touch", 2000, "/tmp").N; n != 2000 {
		t.Errorf("%d small files", n)
	}
	g.Do("ping")
}
