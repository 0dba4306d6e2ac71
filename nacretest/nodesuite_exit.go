package nacretest

import (
	"context"
	"sync"
	"testing"

	"github.com/nacrehq/nacre"
)

// watch collects exits until the test ends.
func (n NodeUnderTest) watch(t *testing.T) func() map[nacre.SandboxID][]nacre.Exit {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	seen := map[nacre.SandboxID][]nacre.Exit{}
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = n.Node.WatchExits(ctx, func(id nacre.SandboxID, e nacre.Exit) {
			mu.Lock()
			defer mu.Unlock()
			seen[id] = append(seen[id], e)
		})
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return func() map[nacre.SandboxID][]nacre.Exit {
		mu.Lock()
		defer mu.Unlock()
		out := map[nacre.SandboxID][]nacre.Exit{}
		for k, v := range seen {
			out[k] = append([]nacre.Exit(nil), v...)
		}
		return out
	}
}

func nodeExit(t *testing.T, n NodeUnderTest) {
	if n.Crash == nil {
		t.Skip("no Crash")
	}
	seen := n.watch(t)
	a, sa := n.start(t)
	b, sb := n.start(t)
	defer n.stop(t, b.Sandbox)
	n.Crash(sa.Machine)
	eventually(t, "the exit is told", func() bool { return len(seen()[a.Sandbox]) > 0 })
	e := seen()[a.Sandbox][0]
	if e.Machine != sa.Machine || (e.Reason != nacre.EndCrash && e.Reason != nacre.EndOOM) || e.Detail == "" {
		t.Fatalf("exit: %+v", e)
	}
	if _, ok := n.Traffic.Route(a.Sandbox); ok {
		t.Fatal("there is still a route to it")
	}
	_, err := n.Traffic.Agent(t.Context(), a.Sandbox)
	nodeWantCode(t, err, nacre.CodeNotFound)
	list, err := n.Node.Machines(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("machines: %+v, %v", list, err)
	}
	for _, m := range list {
		if (m.Sandbox == a.Sandbox) != (m.Exit != nil) {
			t.Fatalf("machines: %+v", list)
		}
	}
	n.stop(t, a.Sandbox)
	n.Crash(sb.Machine)
	eventually(t, "the second exit is told", func() bool { return len(seen()[b.Sandbox]) > 0 })
	if got := seen(); len(got[a.Sandbox]) != 1 || len(got[b.Sandbox]) != 1 {
		t.Fatalf("exits: %+v", got)
	}
}

func nodeExitBefore(t *testing.T, n NodeUnderTest) {
	if n.Crash == nil {
		t.Skip("no Crash")
	}
	a, sa := n.start(t)
	b, sb := n.start(t)
	defer n.stop(t, a.Sandbox)
	n.Crash(sa.Machine)
	n.Crash(sb.Machine)
	eventually(t, "both are gone", func() bool {
		_, ok := n.Traffic.Route(a.Sandbox)
		_, ok2 := n.Traffic.Route(b.Sandbox)
		return !ok && !ok2
	})
	n.stop(t, b.Sandbox)
	seen := n.watch(t)
	eventually(t, "the exit is told", func() bool { return len(seen()[a.Sandbox]) == 1 })
	if got := seen(); len(got[b.Sandbox]) != 0 {
		t.Fatalf("one that was stopped is told of: %+v", got)
	}
}

func nodeExitWhileDown(t *testing.T, n NodeUnderTest) {
	if n.Restart == nil || n.Crash == nil {
		t.Skip("no Restart or no Crash")
	}
	a, sa := n.start(t)
	n.Crash(sa.Machine)
	eventually(t, "it is gone", func() bool { _, ok := n.Traffic.Route(a.Sandbox); return !ok })
	n = n.Restart(t)
	seen := n.watch(t)
	eventually(t, "the exit is told", func() bool { return len(seen()[a.Sandbox]) == 1 })
	if e := seen()[a.Sandbox][0]; e.Detail == "" || e.Reason == nacre.EndKilled {
		t.Fatalf("exit: %+v", e)
	}
	n.stop(t, a.Sandbox)
	n.noLeaks(t)
}
