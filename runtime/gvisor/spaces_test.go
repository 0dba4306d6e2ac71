package gvisor

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/sentry/platform"
)

type fakeSpace struct {
	platform.AddressSpace
	number int
}

// TestSpacesAreLimited: as many as may be are made whoever asks at once, what was given
// back is used again, and beyond that a fork is refused.
func TestSpacesAreLimited(t *testing.T) {
	const limit, callers = 50, 200
	var mu sync.Mutex
	var kept []platform.AddressSpace
	made := 0
	get := func() (platform.AddressSpace, error) {
		mu.Lock()
		defer mu.Unlock()
		if n := len(kept); n > 0 {
			as := kept[n-1]
			kept = kept[:n-1]
			return as, nil
		}
		made++
		return &fakeSpace{number: made}, nil
	}
	s := newSpaces(limit, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(kept) > 0
	})
	for round := range 20 {
		var had []platform.AddressSpace
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				as, err := s.take(get)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					had = append(had, as)
				case !errors.Is(err, linuxerr.EAGAIN):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(had) != limit || made != limit {
			t.Fatalf("round %d: %d of %d callers have one and %d were made, want %d of each", round, len(had), callers, made, limit)
		}
		kept = had
	}
	refused := errors.New("no memory")
	if _, err := s.take(func() (platform.AddressSpace, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
}

// TestPoolIsGVisors: what is read by gVisor's name is laid out as gVisor's.
func TestPoolIsGVisors(t *testing.T) {
	pool := systrapSource(t, "subprocess_pool.go")
	for source, want := range map[string]string{
		systrapSource(t, "subprocess.go"): "globalPool = subprocessPool{}\n",
		pool:                              "import (\n\t\"sync\"\n)\n",
	} {
		if !strings.Contains(source, want) {
			t.Errorf("gVisor no longer has %q: fit spaces.go to it", want)
		}
	}
	_, shape, _ := strings.Cut(pool, "type subprocessPool struct {\n")
	shape, _, _ = strings.Cut(shape, "}")
	var fields []string
	for line := range strings.Lines(shape) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "//") {
			fields = append(fields, strings.Join(strings.Fields(line), " "))
		}
	}
	if got := strings.Join(fields, "; "); got != "mu sync.Mutex; source *subprocess; available []*subprocess" {
		t.Errorf("gVisor's pool is {%s}: fit spaces.go to it", got)
	}
}
