package reach

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/nacretest/fakenet"
)

func (h Host) internet(t *testing.T, a, b machine) {
	dns := a.slot.Gateway.String() + ":53 "
	a.open(t, "tcp", fakenet.CloudFlare+":7")
	a.open(t, "udp", fakenet.DNSServer+":7")
	a.open(t, "dns", dns+"example.com")
	a.open(t, "dns", dns+"big.test") // over TCP
	b.refused(t, "tcp", fakenet.CloudFlare+":7")
	b.silent(t, "udp "+fakenet.CloudFlare+":7")
	if _, failure := b.try(t, "dns "+dns+"example.com"); failure == "" {
		t.Error("a name is resolved for a guest that may reach nobody")
	}
	took, failure := a.within(t, 10*h.Patience, fmt.Sprintf("get %s:7 %d", fakenet.CloudFlare, h.Bulk))
	if failure != "" {
		t.Fatal(failure)
	}
	d, _ := time.ParseDuration(took)
	t.Logf("%d MiB out and back in %v: %.0f MB/s each way", h.Bulk>>20, d, float64(h.Bulk)/1e6/d.Seconds())
}

// metadata: every spelling ends at the same packets, and a name that leads there is
// resolved, and of no use.
func (h Host) metadata(t *testing.T, m machine) {
	for _, form := range MetadataForms() {
		addr := net.JoinHostPort(form, fmt.Sprint(fakenet.HTTPPort))
		if _, failure := m.try(t, "tcp "+addr); failure == "" || strings.Contains(failure, "timeout") {
			t.Errorf("%s: %q, want a refusal at once", form, failure)
		}
	}
	if out, failure := m.try(t, "dns "+m.slot.Gateway.String()+":53 metadata.test"); out != "["+fakenet.Metadata+"]" {
		t.Errorf("metadata by name is %q, %s", out, failure)
	}
}

func (h Host) closed(t *testing.T, m machine) {
	m.open(t, "tcp", fakenet.Example+":7") // the policy is open
	var silent []string
	for _, c := range Closed() {
		if c.Refused {
			m.refused(t, "tcp", c.Addr+":7")
		} else {
			silent = append(silent, "tcp "+c.Addr+":7")
		}
	}
	for _, addr := range ClosedUDP() {
		silent = append(silent, "udp "+addr+":7")
	}
	m.silent(t, silent...)
}

// hosts: of the host a guest reaches DNS at the gateway and nothing else.
func (h Host) hosts(t *testing.T, m machine) {
	l, err := net.Listen("tcp4", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go fakenet.Echo(l)
	for _, addr := range []string{m.slot.Gateway.String(), fakenet.HostAddr} {
		c, err := net.DialTimeout("tcp4", addr+":8080", h.Patience)
		if err != nil {
			t.Fatalf("the host's own service does not answer the host at %s: %v", addr, err)
		}
		c.Close()
		m.refused(t, "tcp", addr+":8080")
	}
	for _, addr := range []string{"127.0.0.1:8080", "127.0.0.53:53", fakenet.HostAddr + ":53"} {
		m.refused(t, "tcp", addr)
	}
}

// others: one machine does not reach another one, not even its agent.
func (h Host) others(t *testing.T, a, b machine) {
	addr := b.slot.Guest.Addr().String() + ":49983"
	a.silent(t, "tcp "+addr, "udp "+addr)
	b.silent(t, "tcp "+a.slot.Guest.Addr().String()+":49983")
}

// spoofing: packets with another source arrive nowhere. The last, honest one does, so
// that the others would have before it.
func (h Host) spoofing(t *testing.T, a, b machine, inet *fakenet.Internet) {
	const port = 4242
	seen, err := inet.Received(t, port)
	if err != nil {
		t.Fatal(err)
	}
	to := fmt.Sprintf("%s:%d", fakenet.Example, port)
	sources := FalseSources(a.slot, b.slot)
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		_, failure := a.try(t, "raw "+sources[name]+" "+to+" "+strings.ReplaceAll(name, " ", "-"))
		if h.RawSockets && failure != "" {
			t.Errorf("the guest does not even send as %s, so the test proves nothing: %s", name, failure)
		}
	}
	if _, failure := a.try(t, "raw own "+to+" own"); (failure == "") != h.RawSockets {
		t.Errorf("sending a packet of its own making: %q, want raw sockets %v", failure, h.RawSockets)
	}
	if _, failure := a.try(t, "say "+to+" honest"); failure != "" {
		t.Fatal(failure)
	}
	var got []string
	for len(got) == 0 || got[len(got)-1] != "honest" {
		select {
		case s := <-seen:
			got = append(got, s)
		case <-time.After(h.Patience):
			t.Fatalf("the honest packet did not arrive; seen %q", got)
		}
	}
	want := []string{"honest"}
	if h.RawSockets {
		want = []string{"own", "honest"}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q arrived, want %q", got, want)
	}
}

// policies change under a running guest.
func (h Host) policies(t *testing.T, m machine) {
	for name, p := range Policies() {
		if err := h.Network.SetEgress(t.Context(), m.id, p.EgressPolicy); err != nil {
			t.Fatalf("%s: SetEgress: %v", name, err)
		}
		t.Log("policy: " + name)
		for _, addr := range p.Open {
			m.open(t, "tcp", addr+":7")
		}
		for _, addr := range p.Closed {
			m.refused(t, "tcp", addr+":7")
		}
	}
}
