package miosa

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/nacrehq/nacre"
)

// fakeDNS is a name server on the loopback that tells what it was told.
type fakeDNS struct {
	mu     sync.Mutex
	cnames map[string]string
	texts  map[string]string
}

func (f *fakeDNS) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(q)
	name, kind := q.Question[0].Name, q.Question[0].Qtype
	head := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: 1}
	}
	target := f.cnames[name]
	if _, below, ok := strings.Cut(name, "."); ok && target == "" {
		target = f.cnames["*."+below]
	}
	switch {
	case kind == dns.TypeTXT && f.texts[name] != "":
		m.Answer = append(m.Answer, &dns.TXT{Hdr: head(dns.TypeTXT), Txt: []string{f.texts[name]}})
	case target != "" && kind != dns.TypeTXT:
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: head(dns.TypeCNAME), Target: dns.Fqdn(target)})
		if kind == dns.TypeA {
			h := head(dns.TypeA)
			h.Name = dns.Fqdn(target)
			m.Answer = append(m.Answer, &dns.A{Hdr: h, A: net.IPv4(127, 0, 0, 1)})
		}
	default:
		m.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(m)
}

func (f *fakeDNS) set(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// resolver starts the server and returns who asks it, and nobody else.
func (f *fakeDNS) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: conn, Handler: f}
	done := make(chan error, 1)
	go func() { done <- srv.ActivateAndServe() }()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

type domainAnswer struct {
	ID, Status, Target string
	Verified           bool
	Records            []dnsInstruction
}

func (a answer) domain(t *testing.T) (d domainAnswer) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), &d); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	return d
}

// TestCustomDomains: a domain answers for its team's previews once the DNS shows that
// the team set the record it was given, be it the CNAME or the TXT. Another team's
// record proves nothing, and who is second cannot have it.
func TestCustomDomains(t *testing.T) {
	h := newHarness(t)
	fake := &fakeDNS{cnames: map[string]string{}, texts: map[string]string{}}
	h.api.Resolver = fake.resolver(t)
	box := h.create(`{}`)
	slug := "shop"
	preview := h.ok(201, "POST", "/sandboxes/"+box+"/previews", `{"port":3000,"slug":"`+slug+`"}`).field(t, "id")
	answers := func(host string) bool {
		r, err := h.db.PreviewByDomain(t.Context(), host)
		return err == nil && string(r.Preview.ID) == preview
	}

	mine := h.ok(200, "PUT", "/tenant/preview-domain", `{"preview_domain":"apps.example.com"}`).domain(t)
	theirs := h.do("PUT", "/tenant/preview-domain", h.keyB, `{"domain":"apps.example.com"}`).domain(t)
	if mine.Status != "pending_dns" || theirs.Status != "pending_dns" || mine.Target == "" || mine.Target == theirs.Target {
		t.Fatalf("mine %+v, theirs %+v", mine, theirs)
	}
	verify := func(key string) answer { return h.do("POST", "/tenant/preview-domain/verify", key, "") }
	if d := verify(h.keyA).domain(t); d.Verified {
		t.Error("verified without a record")
	}
	fake.set(func() { fake.cnames["*.apps.example.com."] = theirs.Target })
	if d := verify(h.keyA).domain(t); d.Verified {
		t.Error("verified by another team's record")
	}
	fake.set(func() { fake.cnames["*.apps.example.com."] = mine.Target })
	if d := verify(h.keyB).domain(t); d.Verified {
		t.Error("verified for who did not set the record")
	}
	if answers(slug + ".apps.example.com") {
		t.Error("it answers before it was verified")
	}
	if d := verify(h.keyA).domain(t); d.Status != "configured" || !d.Verified {
		t.Errorf("with the record: %+v", d)
	}
	if !answers(slug+".apps.example.com") || answers("apps.example.com") || answers("other.apps.example.com") {
		t.Error("the verified domain does not lead to the team's previews, or to more")
	}
	fake.set(func() { fake.cnames["*.apps.example.com."] = theirs.Target })
	if a := verify(h.keyB); a.status != 409 {
		t.Errorf("a second team: %d %s", a.status, a.body)
	}
	h.ok(204, "DELETE", "/tenant/preview-domain", "")
	if answers(slug + ".apps.example.com") {
		t.Error("it answers after it was given up")
	}

	flat := h.ok(201, "POST", "/custom-domains", `{"domain":"Shop.Example.org.","preview_id":"`+preview+`"}`).domain(t)
	var proof dnsInstruction
	for _, r := range flat.Records {
		if r.Type == "TXT" {
			proof = r
		}
	}
	fake.set(func() { fake.texts[dns.Fqdn(proof.Name)] = proof.Value })
	if d := h.ok(200, "POST", "/custom-domains/"+flat.ID+"/verify", "").domain(t); !d.Verified || !answers("shop.example.org") {
		t.Errorf("by TXT: %+v", d)
	}
	for _, bad := range []string{"", "com", "nacre.localhost", "x.nacre.localhost", "a b.com", "-a.com", strings.Repeat("a.", 130) + "com"} {
		body, _ := json.Marshal(map[string]string{"domain": bad})
		if a := h.do("PUT", "/tenant/preview-domain", h.keyA, string(body)); a.status != 422 {
			t.Errorf("domain %q: %d %s", bad, a.status, a.body)
		}
	}
	if _, err := h.db.PreviewByDomain(t.Context(), "shop.example.org"); nacre.IsCode(err, nacre.CodeNotFound) {
		t.Error("the refused requests took the domain away")
	}
}
