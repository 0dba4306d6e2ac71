package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestWait: what is quick shows nothing; what is not shows that it goes on.
func TestWait(t *testing.T) {
	for _, tty := range []bool{true, false} {
		var out bytes.Buffer
		b := &Bar{w: &out, tty: tty}
		b.Wait("quick")()
		if out.Len() != 0 {
			t.Errorf("tty %v: %q", tty, out.String())
		}
		shown := make(chan struct{})
		b.w = writer(func(p []byte) { out.Write(p); close(shown) })
		stop := b.Wait("slow")
		select {
		case <-shown:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing is shown")
		}
		b.w = &out
		stop()
		if got := out.String(); !strings.Contains(got, "  slow ...") || !strings.HasSuffix(got, "\n") || strings.Contains(got, "\r") != tty {
			t.Errorf("tty %v: %q", tty, got)
		}
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// TestWatch: what can be looked at shows how far it is.
func TestWatch(t *testing.T) {
	var out bytes.Buffer
	shown := make(chan struct{})
	b := &Bar{tty: true}
	b.w = writer(func(p []byte) { out.Write(p); close(shown) })
	stop := b.Watch("slow", func() (done, total int64) { return 30, 40 })
	select {
	case <-shown:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is shown")
	}
	b.w = &out
	stop()
	if got := out.String(); !strings.Contains(got, "slow") || !strings.Contains(got, "75%") {
		t.Errorf("%q", got)
	}
}
