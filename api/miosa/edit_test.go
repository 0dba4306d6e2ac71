package miosa

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestEditsAtOnce: each of many clients that change one sandbox at the same moment
// finds its own change in it afterwards.
func TestEditsAtOnce(t *testing.T) {
	h := newHarness(t)
	box := "/sandboxes/" + h.create(`{"metadata":{"first":1},"slug":"mine","external_user_id":"u1"}`)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if a := h.do("PATCH", box, h.keyA, fmt.Sprintf(`{"metadata":{"k%d":{"n":%d}}}`, i, i)); a.status != http.StatusOK {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Go(func() { h.do("PATCH", box+"/tags", h.keyA, `{"tags":["a","b"]}`) })
	wg.Wait()
	var got sandbox
	decode(t, h.ok(200, "GET", box, "").body, &got)
	if len(got.Metadata) != 21 || string(got.Metadata["k7"]) != `{"n":7}` || string(got.Metadata["first"]) != "1" {
		t.Errorf("metadata %s", encode(got.Metadata))
	}
	if strings.Join(got.Tags, " ") != "a b" || deref(got.Slug) != "mine" || deref(got.ExternalUserID) != "u1" {
		t.Errorf("%+v", got)
	}
}

// TestEditIsWhole: what is refused in a part is refused as a whole, and a paused
// sandbox takes a new timeout for when it runs again.
func TestEditIsWhole(t *testing.T) {
	h := newHarness(t)
	box := "/sandboxes/" + h.create(`{"name":"before","timeout_sec":100}`)
	for _, bad := range []string{`{"name":"after","timeout_sec":0}`, `{"name":"after","metadata":{"nacre:x":1}}`, `{"name":"after","tags":["a,b"]}`,
		`{"name":"after","idle_timeout_sec":86401}`} {
		h.ok(422, "PATCH", box, bad)
	}
	if got := h.ok(200, "GET", box, "").field(t, "name"); got != "before" {
		t.Errorf("the name is %q", got)
	}
	h.ok(200, "POST", box+"/pause", "")
	var got sandbox
	decode(t, h.ok(200, "PATCH", box, `{"name":"after","timeout_sec":200}`).body, &got)
	if deref(got.Name) != "after" || got.TimeoutSec != 200 || got.State != statePaused {
		t.Errorf("%+v", got)
	}
	decode(t, h.ok(200, "POST", box+"/resume", "").body, &got)
	if left := got.TimeoutRemainingMS; left == nil || *left < 190_000 || *left > 200_000 {
		t.Errorf("%+v", got)
	}
	h.ok(200, "DELETE", box, "")
	if a := h.ok(404, "PATCH", box, `{"name":"x"}`); !strings.Contains(a.body, "SANDBOX_NOT_FOUND") {
		t.Error(a.body)
	}
}
