package gvisor

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func dial(t testing.TB, m nacre.Machine) net.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for {
		c, err := m.Dial(ctx, 49983)
		if err == nil {
			return c
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestBoot(t *testing.T) {
	r := newRuntime(t)
	for range 8 {
		spec := newSpec(t)
		ctx := context.Background()
		t0 := time.Now()
		m, err := r.Start(ctx, spec)
		check(t, err)
		a := time.Since(t0)
		c := dial(t, m)
		c.Close()
		t.Log("start", a, "dial", time.Since(t0))
		t0 = time.Now()
		check(t, m.Stop(ctx))
		t.Log("stop", time.Since(t0))
		t.Log(m.Wait(ctx))
		t.Log(leftovers(spec))
	}
}
