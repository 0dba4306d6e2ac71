package miosa

import (
	"encoding/json"
	"testing"
	"time"
)

// TestWholeSandbox: who asks for a sandbox is told when it was used last, for how long
// it ran, and where it is seen; each is null until there is something to tell.
func TestWholeSandbox(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{"name":"whole"}`)
	type object struct {
		LastActivityAt  *time.Time `json:"last_activity_at"`
		TotalRuntimeSec *int64     `json:"total_runtime_sec"`
		PreviewURL      *string    `json:"preview_url"`
	}
	get := func(path string) object {
		t.Helper()
		var o object
		if err := json.Unmarshal([]byte(h.ok(200, "GET", path, "").body), &o); err != nil {
			t.Fatal(err)
		}
		return o
	}
	if o := get("/sandboxes/" + id); o.LastActivityAt != nil || o.PreviewURL != nil || o.TotalRuntimeSec == nil || *o.TotalRuntimeSec != 0 {
		t.Errorf("a new one: %+v", o)
	}
	begin := time.Now().Add(-time.Millisecond).Truncate(time.Millisecond)
	h.ok(200, "POST", "/sandboxes/"+id+"/exec", `{"command":"true"}`)
	h.ok(201, "POST", "/sandboxes/"+id+"/previews", `{"port":8080,"slug":"first"}`)
	if o := get("/sandboxes/" + id); o.LastActivityAt == nil || o.LastActivityAt.Before(begin) || o.PreviewURL == nil || *o.PreviewURL != "https://first.nacre.localhost:8443" {
		t.Errorf("one that was used and is shown: %+v", o)
	}
	h.ok(201, "POST", "/sandboxes/"+id+"/previews", `{"port":3000,"slug":"hidden","visibility":"private"}`)
	h.ok(201, "POST", "/sandboxes/"+id+"/previews", `{"port":3000,"slug":"main"}`)
	if o := get("/sandboxes/by-name/whole"); o.PreviewURL == nil || *o.PreviewURL != "https://main.nacre.localhost:8443" {
		t.Errorf("one with a preview of the default port: %+v", o)
	}
	time.Sleep(1100 * time.Millisecond) // the figure is whole seconds of the clock
	h.ok(200, "DELETE", "/sandboxes/"+id, "")
	o := get("/sandboxes/" + id)
	if o.TotalRuntimeSec == nil || *o.TotalRuntimeSec < 1 || *o.TotalRuntimeSec > 60 {
		t.Errorf("one that ended: it ran for %v s", o.TotalRuntimeSec)
	}
	if o.LastActivityAt != nil || o.PreviewURL != nil {
		t.Errorf("one that ended: %+v", o)
	}
}
