package edge

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestHealthOfAnAgentThatHangs: who asks whether a sandbox runs is answered in time, and
// not with the 502 that clients take for a no, for it does; other calls of the same agent
// may take their time, and one that has ended meanwhile is a no.
func TestHealthOfAnAgentThatHangs(t *testing.T) {
	w := newWorld(t)
	w.edge.healthTime = 100 * time.Millisecond
	over := make(chan struct{})
	hang := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			select {
			case <-over:
			case <-r.Context().Done():
			}
			return
		}
		time.Sleep(3 * w.edge.healthTime)
		_, _ = io.WriteString(rw, "done")
	})
	w.guest(idA, 49983, hang)
	t.Cleanup(func() { close(over) })
	begin := time.Now()
	a := w.do("GET", host("49983", idA), "/health")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the answer took %s", took)
	}
	var body sandboxError
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.status != 504 || body.Code != 504 ||
		body.SandboxID != string(idA) || body.Message != messageNoAnswer {
		t.Errorf("%d %s %v", a.status, a.body, err)
	}
	if a := w.do("POST", host("49983", idA), "/process.Process/Start", w.token(idA, 1)); a.status != 200 || a.body != "done" {
		t.Errorf("a command that takes longer than that: %d %q", a.status, a.body)
	}
	w.guest(idB, 8080, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		time.Sleep(3 * w.edge.healthTime)
		_, _ = io.WriteString(rw, "slow server")
	}))
	if a := w.do("GET", host("8080", idB), "/health"); a.status != 200 || a.body != "slow server" {
		t.Errorf("the health of a user's own server: %d %q", a.status, a.body)
	}
	w.guest(idB, 49983, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		w.end(idB)
		<-r.Context().Done()
	}))
	if a := w.do("GET", host("49983", idB), "/health"); a.status != 502 || !strings.Contains(a.body, messageNotFound) {
		t.Errorf("one that ends while it is asked: %d %s", a.status, a.body)
	}
	w = newWorld(t) // whose agents have all the time that they have
	if a := w.do("GET", host("49983", idB), "/health"); a.status != 200 || !strings.HasPrefix(a.body, "agentB") {
		t.Errorf("an agent that answers: %d %q", a.status, a.body)
	}
}

// TestHealthTimeout: the clients' own limit is five seconds where they set one.
func TestHealthTimeout(t *testing.T) {
	if got := newWorld(t).edge.healthTime; got <= 0 || got >= 5*time.Second {
		t.Errorf("%s", got)
	}
}
