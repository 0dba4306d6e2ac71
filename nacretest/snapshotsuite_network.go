package nacretest

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// testRestoreEndsConnections: a restored guest has the address of its new slot. What was
// connected to others learns at once that it is not any more, in the guest that goes on
// it still is, and connections within the guest go on in both.
func testRestoreEndsConnections(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	spec := h.Spec(t)
	m := h.boot(t, r, spec)
	g := DialGuest(t, m)
	g.Do("keep", 1)
	first := connectOutside(t, g, spec)
	dir, _ := snap(t, m, nacre.SnapshotOptions{KeepRunning: true})

	again := h.Spec(t)
	rg := DialGuest(t, h.restore(t, r, again, dir))
	ends := rg.Try("outside-ends")
	// The guest reads for 20 s; nothing else would end the connection.
	if ends.Err == "" || strings.Contains(ends.Err, "timeout") {
		t.Errorf("a connection from before ends after %v with %q", time.Duration(ends.N), ends.Err)
	}
	t.Logf("a connection from before ends after %v: %s", time.Duration(ends.N), ends.Err)
	rg.Do("kept")
	c := connectOutside(t, rg, again)
	from := netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap()
	if from != again.Slot.Guest.Addr() {
		t.Errorf("the restored guest speaks from %s, want %s", from, again.Slot.Guest.Addr())
	}
	if _, err := first.Write([]byte("x")); err != nil {
		t.Errorf("to the guest that goes on: %v", err)
	}
	g.Do("outside-ends") // it reads the byte
	g.Do("kept")
}

// connectOutside has the guest connect to its host's end of the slot.
func connectOutside(t *testing.T, g *Guest, spec nacre.MachineSpec) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp4", net.JoinHostPort(spec.Slot.Gateway.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g.Do("outside", l.Addr().String())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
