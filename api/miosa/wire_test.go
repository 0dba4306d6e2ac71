package miosa

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

func decode(t *testing.T, body string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), v); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
}

// isSuperset: the fields stand at the top and once more below data.
func isSuperset(t *testing.T, a answer) {
	t.Helper()
	var m map[string]any
	decode(t, a.body, &m)
	data, ok := m["data"].(map[string]any)
	delete(m, "data")
	if !ok || !reflect.DeepEqual(m, data) {
		t.Errorf("no superset: %s", a.body)
	}
}

// TestShapes holds the answers that the clients parse.
func TestShapes(t *testing.T) {
	h := newHarness(t)
	created := h.ok(201, "POST", "/sandboxes", `{"name":"n","slug":"s","tags":["b","a"],"metadata":{"k":"v"},"external_user_id":"u1","size":"small","env":{"A":"1"}}`)
	isSuperset(t, created)
	golden(t, "sandbox", created)
	box := "/sandboxes/" + created.field(t, "id")
	for _, c := range []struct {
		golden       string
		status       int
		method, path string
		body         string
	}{
		{"list", 200, "GET", "/sandboxes", ""},
		{"readiness", 200, "GET", box + "/readiness", ""},
		{"resources", 200, "GET", box + "/resources", ""},
		{"exec", 200, "POST", box + "/exec", `{"command":"echo out; exit 3","env":{"X":"1"}}`},
		{"process", 201, "POST", box + "/processes", `{"command":"sleep 1000","name":"dev"}`},
		{"write", 200, "POST", box + "/fs/write", `{"path":"/workspace/d/f","content_base64":"aGVsbG8="}`},
		{"write_many", 200, "POST", box + "/fs/write-many", `{"files":[{"path":"/workspace/x","content_base64":"eA=="},{"path":"rel","content_base64":"eA=="}]}`},
		{"files", 200, "GET", box + "/files?path=/workspace/d", ""},
		{"stat", 200, "POST", box + "/files/stat", `{"path":"/workspace/d/f"}`},
		{"tree", 200, "GET", box + "/files/tree?path=/workspace/d", ""},
		{"env", 200, "GET", box + "/env", ""},
		{"terminal", 201, "POST", box + "/terminal", `{"cols":100,"rows":30,"shell":"cat"}`},
		{"snapshot", 201, "POST", box + "/snapshots", `{"comment":"c","retention_seconds":3600}`},
		{"snapshots", 200, "GET", box + "/snapshots", ""},
		{"preview", 201, "POST", box + "/previews", `{"port":3000,"label":"web"}`},
		{"expose", 200, "POST", box + "/expose", `{"port":3000}`},
		{"share", 201, "POST", box + "/shares", `{"expires_in":60}`},
		{"preview_token", 201, "POST", box + "/preview-token", `{"expires_in":60,"scope":"read"}`},
		{"secret", 201, "POST", "/egress/secrets", `{"name":"k","value":"sk-live-1234567890","resource_id":"` + created.field(t, "id") + `","resource_type":"sandbox","expose_as_env":"TOK"}`},
		{"secrets", 200, "GET", "/egress/secrets", ""},
		{"bindings", 200, "GET", "/egress/bindings", ""},
		{"preview_domain", 200, "GET", "/tenant/preview-domain", ""},
		{"templates", 200, "GET", "/sandbox-templates", ""},
		{"template", 200, "GET", "/sandbox-templates/miosa-sandbox", ""},
		{"versions", 200, "GET", "/sandbox-templates/miosa-sandbox/versions", ""},
		{"catalogue", 200, "GET", "/templates", ""},
		{"metrics", 200, "GET", box + "/metrics?window=1h", ""},
		{"credits", 200, "GET", "/credits/balance", ""},
		{"actions", 200, "GET", "/api/v1/actions/catalog", ""},
		{"authorize", 200, "POST", "/api/v1/actions/authorize", `{"capability":{"name":"sandbox.create"}}`},
		{"invalid", 422, "POST", "/sandboxes", `{"cpu_count":9}`},
		{"destroyed", 200, "DELETE", box, ""},
	} {
		a := h.do(c.method, c.path, h.keyA, c.body)
		if a.status != c.status {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.path, a.status, a.body, c.status)
			continue
		}
		golden(t, c.golden, a)
	}
}

// TestWire8_SecretListsHaveNoData: one client takes "data" for one object.
func TestWire8_SecretListsHaveNoData(t *testing.T) {
	h := newHarness(t)
	for path, key := range map[string]string{"/egress/secrets": "secrets", "/egress/bindings": "bindings"} {
		var m map[string]any
		decode(t, h.ok(200, "GET", path, "").body, &m)
		if _, has := m["data"]; has || m[key] == nil {
			t.Errorf("%s: %v", path, m)
		}
	}
	// With exactly these two keys a client unwraps "data".
	var m map[string]any
	decode(t, h.ok(201, "POST", "/egress/secrets", `{"name":"k","value":"v"}`).body, &m)
	if len(m) != 2 || m["data"] == nil {
		t.Errorf("%v", m)
	}
}

// TestWire3_GoCLIReadsRows: no tags where there are none, for the CLI dies on any
// list there, and strings for metadata.
func TestWire3_GoCLIReadsRows(t *testing.T) {
	h := newHarness(t)
	h.create(`{"size":"small","template_id":"miosa-sandbox","metadata":{"a":"b"}}`)
	var page struct {
		Data []struct {
			ID       string
			Metadata map[string]string
			Tags     map[string]string
		}
	}
	decode(t, h.ok(200, "GET", "/sandboxes", "").body, &page)
	if len(page.Data) != 1 || page.Data[0].Metadata["a"] != "b" {
		t.Errorf("%+v", page)
	}
	h.create(`{"tags":{"team":"red","flag":""}}`) // that CLI's own form of tags
	if a := h.ok(200, "GET", "/sandboxes?tags=team%3Dred,flag", ""); strings.Count(a.body, `"tags":["flag","team=red"]`) != 1 {
		t.Errorf("%s", a.body)
	}
}

// TestWire1_BodiesWhereNoneAreExpected: a chunked null on GET, JSON on DELETE.
func TestWire1_BodiesWhereNoneAreExpected(t *testing.T) {
	h := newHarness(t)
	box := "/sandboxes/" + h.create(`{}`)
	h.ok(200, "POST", box+"/files", `{"path":"/workspace/f","content":"eA=="}`)
	for _, path := range []string{box, box + "/readiness/stream", box + "/events", box + "/files/watch"} {
		if a := h.do("GET", path, h.keyA, "null", "Content-Type", "application/json"); a.status != 200 {
			t.Errorf("GET %s: %d %s", path, a.status, a.body)
		}
	}
	for _, path := range []string{box + "/extend", box + "/pause", box + "/resume"} {
		for _, body := range []string{"", "null", "{}"} {
			if a := h.do("POST", path, h.keyA, body); a.status != 200 {
				t.Errorf("POST %s %q: %d %s", path, body, a.status, a.body)
			}
		}
	}
	h.ok(200, "POST", box+"/files", `{"path":"/workspace/f","content":"eA=="}`)
	if a := h.ok(204, "DELETE", box+"/files", `{"path":"/workspace/f"}`); a.body != "" {
		t.Errorf("a 204 with a body %q", a.body)
	}
}

// TestWire5_Downloads: bytes as they are, never as JSON, but for the one client that
// wants it.
func TestWire5_Downloads(t *testing.T) {
	h := newHarness(t)
	box := "/sandboxes/" + h.create(`{}`)
	h.ok(200, "POST", box+"/fs/write", `{"path":"/workspace/a b.json","content":"{\"data\":1}"}`)
	for _, path := range []string{"/fs/download?path=/workspace/a%20b.json", "/files/workspace/a%20b.json", "/files/download?path=/workspace/a%20b.json"} {
		a := h.ok(200, "GET", box+path, "")
		if a.body != `{"data":1}` || a.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: %s %q", path, a.header.Get("Content-Type"), a.body)
		}
	}
	cli := h.ok(200, "GET", box+"/files/workspace/a%20b.json", "", "User-Agent", "miosa-cli/1.0.6")
	if got := cli.field(t, "content"); got != "eyJkYXRhIjoxfQ==" {
		t.Errorf("content %q", got)
	}
	if a := h.do("GET", box+"/fs/download?path=/none", h.keyA, ""); a.status != 404 {
		t.Errorf("a missing file: %d", a.status)
	}
}

// TestWire0_EventStreams: the event line and the type in the data say the same.
func TestWire0_EventStreams(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{}`)
	exec := h.ok(200, "POST", "/sandboxes/"+id+"/exec/stream", `{"command":"echo one; echo two; exit 7"}`)
	if ct := exec.header.Get("Content-Type"); !strings.HasPrefix(ct, "text/event-stream") {
		t.Errorf("content type %q", ct)
	}
	want := "event: stdout\ndata: {\"type\":\"stdout\",\"line\":\"one\"}\n\nevent: stdout\ndata: {\"type\":\"stdout\",\"line\":\"two\"}\n\nevent: exit\ndata: {\"type\":\"exit\",\"exit_code\":7,\"duration_ms\":"
	if !strings.HasPrefix(exec.body, want) {
		t.Errorf("%q", exec.body)
	}
	ready := h.ok(200, "GET", "/sandboxes/"+id+"/readiness/stream", "")
	if !strings.HasPrefix(ready.body, "event: ready\ndata: {\"type\":\"ready\",\"ready\":true,") {
		t.Errorf("%q", ready.body)
	}
	h.ok(200, "POST", "/sandboxes/"+id+"/pause", "{}")
	h.ok(200, "POST", "/sandboxes/"+id+"/resume", "{}")
	h.ok(200, "DELETE", "/sandboxes/"+id, "")
	all := h.ok(200, "GET", "/sandboxes/"+id+"/events", "")
	var words, ids []string
	for block := range strings.SplitSeq(strings.TrimSpace(all.body), "\n\n") {
		lines := strings.Split(block, "\n")
		if len(lines) != 3 {
			continue
		}
		word := strings.TrimPrefix(lines[1], "event: ")
		var data struct {
			Type      string
			SandboxID string `json:"sandbox_id"`
		}
		decode(t, strings.TrimPrefix(lines[2], "data: "), &data)
		if data.Type != word || data.SandboxID != id {
			t.Errorf("%v", lines)
		}
		if !strings.Contains(word, ".exec.") {
			words, ids = append(words, word), append(ids, strings.TrimPrefix(lines[0], "id: "))
		}
	}
	if got := strings.Join(words, " "); got != "sandbox.created sandbox.running sandbox.paused sandbox.resumed sandbox.destroyed" {
		t.Errorf("events %s", got)
	}
	if !strings.Contains(all.body, `"reason":"api"`) {
		t.Errorf("%s", all.body)
	}
	rest := h.ok(200, "GET", "/sandboxes/"+id+"/events", "", "Last-Event-ID", ids[min(2, len(ids)-1)])
	if strings.Contains(rest.body, "sandbox.paused") || !strings.Contains(rest.body, "event: sandbox.resumed\n") {
		t.Errorf("resumed: %s", rest.body)
	}
	only := h.ok(200, "GET", "/sandboxes/"+id+"/events?types=sandbox.p*", "")
	if strings.Contains(only.body, "sandbox.created") || !strings.Contains(only.body, "event: sandbox.paused\n") {
		t.Errorf("filtered: %s", only.body)
	}
}

// TestListsAreCompleteOrAsked: all rows unless a part is asked for.
func TestListsAreCompleteOrAsked(t *testing.T) {
	h := newHarness(t)
	for range 5 {
		h.create(`{}`)
	}
	for query, n := range map[string]int{"": 5, "?limit=2": 2, "?page=2&page_size=3": 2, "?per_page=4": 4, "?limit=2&offset=4": 1, "?state=running": 5, "?state=paused": 0, "?state=all": 5, "?state=error": 0} {
		var page struct{ Data []sandbox }
		decode(t, h.ok(200, "GET", "/sandboxes"+query, "").body, &page)
		if len(page.Data) != n {
			t.Errorf("%s: %d rows, want %d", query, len(page.Data), n)
		}
	}
}

// TestOnce: a create with a key happens once, however often it is sent.
func TestOnce(t *testing.T) {
	h := newHarness(t)
	first := h.ok(201, "POST", "/sandboxes", `{"name":"x"}`, "Idempotency-Key", "k1")
	again := h.ok(201, "POST", "/sandboxes", `{"name":"x"}`, "Idempotency-Key", "k1")
	if first.body != again.body || again.header.Get("Idempotent-Replay") == "" {
		t.Errorf("%s\n%s", first.body, again.body)
	}
	if a := h.do("POST", "/sandboxes", h.keyA, `{"name":"y"}`, "Idempotency-Key", "k1"); a.status != 422 || !strings.Contains(a.body, "IDEMPOTENCY_KEY_REUSED") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if b := h.do("POST", "/sandboxes", h.keyB, `{"name":"x"}`, "Idempotency-Key", "k1"); b.status != 201 || b.field(t, "id") == first.field(t, "id") {
		t.Errorf("the other team's key: %d %s", b.status, b.body)
	}
	if a := h.do("POST", "/sandboxes", h.keyA, `{"cpu_count":99}`, "Idempotency-Key", "k2"); a.status != 422 {
		t.Errorf("%d", a.status)
	}
	h.ok(201, "POST", "/sandboxes", `{"cpu_count":2}`, "Idempotency-Key", "k2") // a failure used nothing up
}

// TestMarkupIsNotEscaped: text comes back as it was sent.
func TestMarkupIsNotEscaped(t *testing.T) {
	h := newHarness(t)
	box := "/sandboxes/" + h.create(`{"metadata":{"k":"<a>&b"}}`)
	if a := h.ok(200, "GET", box, ""); !strings.Contains(a.body, `"k":"<a>&b"`) {
		t.Errorf("%s", a.body)
	}
	if a := h.do(http.MethodHead, box, h.keyA, ""); a.status != 200 {
		t.Errorf("HEAD: %d", a.status)
	}
}
