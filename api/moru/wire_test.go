package moru

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

const (
	id1 = nacre.SandboxID("iaaaaaaaaaaaaaaaaaaa1")
	id2 = nacre.SandboxID("iaaaaaaaaaaaaaaaaaaa2")
	id3 = nacre.SandboxID("iaaaaaaaaaaaaaaaaaaa3")
	id4 = nacre.SandboxID("iaaaaaaaaaaaaaaaaaaa4")

	snap1 = nacre.SnapshotID("saaaaaaaaaaaaaaaaaa1")
	snap2 = nacre.SnapshotID("saaaaaaaaaaaaaaaaaa2")
)

// snapshot is a snapshot of the team with nothing random in it.
func (h *harness) snapshot(id nacre.SnapshotID, team nacre.TeamID, name string, of nacre.SandboxID) nacre.Snapshot {
	s := nacre.Snapshot{
		ID: id, TeamID: team, Name: name, Kind: nacre.SnapshotUser, State: nacre.SnapshotReady, Sandbox: of,
		Comment: "before the upgrade", Template: "base", TemplateID: "tbase00000000000000f",
		Resources: nacre.Resources{CPUs: 2, MemoryMiB: 1024, DiskMiB: 4096}, Env: map[string]string{"SECRET": "of the snapshot"},
		Bytes: 50 << 20, DiskBytes: 20 << 20, Stopped: 41500 * time.Microsecond, CreatedAt: h.clock(),
	}
	h.service.PutSnapshot(s)
	return s
}

// record is a sandbox of the team with nothing random in it.
func (h *harness) record(id nacre.SandboxID, team nacre.TeamID, state nacre.State) nacre.Sandbox {
	now := h.clock()
	s := nacre.Sandbox{
		ID: id, TeamID: team, Template: "base", TemplateID: "tbase00000000000000f",
		State: state, Resources: nacre.Resources{CPUs: 2, MemoryMiB: 1024, DiskMiB: 4096},
		Metadata: map[string]string{"a b": "c&d=é+1"}, Secure: true,
		Network:   nacre.NetworkPolicy{DenyOut: []string{"0.0.0.0/0"}, AllowOut: []string{"1.1.1.1"}, PrivateTraffic: true, MaskRequestHost: "x:${PORT}"},
		CreatedAt: now, StartedAt: now, Deadline: now.Add(5 * time.Minute),
	}
	if state == nacre.StateEnded {
		s.EndReason, s.EndedAt, s.Detail = nacre.EndOOM, now.Add(time.Second), "it used more than 1024 MiB"
	}
	h.service.Put(s)
	return s
}

// TestGolden pins the shapes that the clients' parsers read.
func TestGolden(t *testing.T) {
	h := newHarness(t)
	h.record(id1, h.teamA, nacre.StateRunning)
	h.record(id2, h.teamA, nacre.StateEnded)
	h.snapshot(snap1, h.teamA, "", id1)
	h.snapshot(snap2, h.teamA, "nightly", id2)
	h.record(id3, h.teamA, nacre.StateRunning)
	paused := h.record(id4, h.teamA, nacre.StatePaused)
	paused.OnTimeout, paused.AutoResume, paused.Snapshot = nacre.TimeoutPause, true, snap1
	h.service.Put(paused)
	h.service.AddMetric(id1, nacre.Metric{Time: h.clock(), CPUCount: 2, CPUUsedPct: 12.5, MemUsed: 1, MemTotal: 2, MemCache: 3, DiskUsed: 4, DiskTotal: 5})
	h.service.AddLog(id1, nacre.LogEntry{Time: h.clock(), Type: nacre.LogProcessStart, Message: "started", Fields: map[string]string{"pid": "7", "command": "echo <hi>"}})
	h.service.AddLog(id1, nacre.LogEntry{Time: h.clock(), Type: nacre.LogStderr, Message: "oops"})
	h.service.AddLog(id1, nacre.LogEntry{Time: h.clock(), Type: nacre.LogProcessEnd, Message: "ended", Fields: map[string]string{"pid": "7", "process_result": `{"exit_code":0,"error":""}`}})

	for _, c := range []struct {
		name, method, target, body string
		status                     int
	}{
		{"detail", "GET", "/sandboxes/" + string(id1), "", 200},
		{"ended", "GET", "/sandboxes/" + string(id2), "", 404},
		{"list_v1", "GET", "/sandboxes", "", 200},
		{"list_v2", "GET", "/v2/sandboxes", "", 200},
		{"runs", "GET", "/v2/sandbox-runs", "", 200},
		{"connect", "POST", "/sandboxes/" + string(id1) + "/connect", `{"timeout":1}`, 200},
		{"metrics", "GET", "/sandboxes/" + string(id1) + "/metrics", "", 200},
		{"metrics_latest", "GET", "/sandboxes/metrics?sandbox_ids=" + string(id1) + "," + string(id2), "", 200},
		{"logs_v1", "GET", "/sandboxes/" + string(id1) + "/logs", "", 200},
		{"logs_v2", "GET", "/v2/sandboxes/" + string(id1) + "/logs?level=warn", "", 200},
		{"templates", "GET", "/templates", "", 200},
		{"template", "GET", "/templates/base", "", 200},
		{"template_alias", "GET", "/templates/aliases/moru-ai%2Fbase", "", 200},
		{"teams", "GET", "/teams", "", 200},
		{"health", "GET", "/health", "", 200},
		{"snapshots", "GET", "/snapshots", "", 200},
		{"snapshot_named", "GET", "/snapshots?name=nightly", "", 200},
		{"fork", "POST", "/sandboxes/" + string(id3) + "/fork", `{"count":2,"metadata":{"full":"1"}}`, 201},
		{"list_paused", "GET", "/v2/sandboxes?state=paused", "", 200},
		{"detail_paused", "GET", "/sandboxes/" + string(id4), "", 200},
		{"unsupported", "POST", "/v3/templates", "", 501},
	} {
		a := h.ok(c.status, c.method, c.target, c.body)
		if c.name == "fork" { // the only one with something new in it
			var made []forkResult
			a.decode(t, &made)
			a.body = strings.NewReplacer(made[0].Sandbox.EnvdAccessToken, "ACCESS", *made[0].Sandbox.TrafficAccessToken, "TRAFFIC",
				made[0].Sandbox.SandboxID, "ID").Replace(a.body)
		}
		golden(t, c.name, a.body, h.keyA, "KEY", string(h.teamA), "TEAM",
			h.dialect.TokenKey.AccessToken(id1, 0), "ACCESS", h.dialect.TokenKey.AccessToken(id4, 0), "ACCESS4", h.dialect.TokenKey.TrafficToken(id1, 0), "TRAFFIC")
	}

	created := h.create(`{"templateID":"base","timeout":60,"metadata":{},"envVars":{},"network":{"allowPublicTraffic":false}}`)
	a := h.ok(200, "POST", "/v2/sandboxes/"+created.SandboxID+"/connect", "{}")
	golden(t, "sandbox", a.body, created.EnvdAccessToken, "ACCESS", *created.TrafficAccessToken, "TRAFFIC", created.SandboxID, "ID")
}

// TestKeys: a team manages its own keys, and sees a key once.
func TestKeys(t *testing.T) {
	h := newHarness(t)
	var made apiKey
	h.ok(201, "POST", "/api-keys", `{"name":"ci"}`).decode(t, &made)
	if a := h.do("GET", "/sandboxes", made.Key, ""); a.status != 200 {
		t.Fatalf("the new key: %d", a.status)
	}
	var listed []apiKey
	h.ok(200, "GET", "/api-keys", "").decode(t, &listed)
	if len(listed) != 2 || listed[0].ID != made.ID || listed[0].Key != "" {
		t.Fatalf("listed %+v", listed)
	}
	if listed[0].LastUsed != nil {
		t.Errorf("a key that was not used was used at %s", *listed[0].LastUsed)
	}
	if err := h.teams.KeysUsed(t.Context(), map[string]time.Time{made.ID: h.clock()}); err != nil {
		t.Fatal(err)
	}
	h.ok(200, "GET", "/api-keys", "").decode(t, &listed)
	if listed[0].LastUsed == nil || *listed[0].LastUsed != timestamp(h.clock()) || listed[1].LastUsed != nil {
		t.Errorf("a key that was used: %+v", listed)
	}
	h.ok(204, "DELETE", "/api-keys/"+made.ID, "")
	h.do("GET", "/sandboxes", made.Key, "").isError(t, 401)
	h.ok(404, "DELETE", "/api-keys/"+made.ID, "")
	h.ok(400, "POST", "/api-keys", `{"name":" "}`)
}

// TestWire1_5_ConnectNeverShortens: endAt stays byte-identical when the new end
// would be earlier, and moves when it is later.
func TestWire1_5_ConnectNeverShortens(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{"templateID":"base","timeout":300}`).SandboxID
	endAt := func() string {
		var d sandboxDetail
		h.ok(200, "GET", "/sandboxes/"+id, "").decode(t, &d)
		return d.EndAt
	}
	first := endAt()
	h.advance(time.Second)
	for _, version := range []string{"", "/v2"} {
		h.ok(200, "POST", version+"/sandboxes/"+id+"/connect", `{"timeout":5}`)
		if got := endAt(); got != first {
			t.Fatalf("connect moved the end from %s to %s", first, got)
		}
	}
	h.ok(200, "POST", "/sandboxes/"+id+"/connect", `{"timeout":900}`)
	later := endAt()
	if later <= first {
		t.Fatalf("connect did not extend: %s, then %s", first, later)
	}
	h.ok(204, "POST", "/sandboxes/"+id+"/refreshes", `{"duration":10}`)
	if got := endAt(); got != later {
		t.Fatalf("a refresh shortened to %s", got)
	}
	h.ok(204, "POST", "/sandboxes/"+id+"/timeout", `{"timeout":5}`)
	if got := endAt(); got >= first {
		t.Fatalf("timeout did not shorten: %s", got)
	}
}

// TestWire1_4_ListPages: one at a time, newest first, and the token is absent on
// the last page.
func TestWire1_4_ListPages(t *testing.T) {
	h := newHarness(t)
	var want []string
	for i := range 3 {
		id := h.create(fmt.Sprintf(`{"templateID":"base","metadata":{"n":"%d"}}`, i)).SandboxID
		want = append([]string{id}, want...)
		h.advance(time.Second)
	}
	h.record(id1, h.teamA, nacre.StateCreating)
	h.record(id2, h.teamA, nacre.StateEnded)
	var got []string
	for next := ""; ; {
		a := h.ok(200, "GET", "/v2/sandboxes?limit=1&nextToken="+next, "")
		var page []listedSandbox
		a.decode(t, &page)
		for _, s := range page {
			got = append(got, s.SandboxID)
		}
		if next = a.header.Get("x-next-token"); next == "" {
			break
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("listed %v, want %v", got, want)
	}
}

// TestListFilters: what the store does not filter, the dialect does.
func TestListFilters(t *testing.T) {
	h := newHarness(t)
	old := h.create(`{"templateID":"moru-ai/base"}`).SandboxID
	h.advance(time.Minute)
	since := h.clock().Format(time.RFC3339Nano)
	young := h.create(`{"templateID":"base"}`).SandboxID
	for _, c := range []struct{ query, want string }{
		{"", fmt.Sprint([]string{young, old})},
		{"?template=base", fmt.Sprint([]string{young})},
		{"?template=tbase00000000000000f", fmt.Sprint([]string{young, old})},
		{"?startedAfter=" + since, fmt.Sprint([]string{young})},
		{"?order=asc", fmt.Sprint([]string{old, young})},
		{"?order=asc&startedAfter=" + since, fmt.Sprint([]string{young})},
		{"?state=paused", "[]"},
		{"?state=running&state=paused", fmt.Sprint([]string{young, old})},
		{"?state=running%2Cpaused", fmt.Sprint([]string{young, old})},
	} {
		var page []listedSandbox
		h.ok(200, "GET", "/v2/sandboxes"+c.query, "").decode(t, &page)
		ids := []string{}
		for _, s := range page {
			ids = append(ids, s.SandboxID)
		}
		if fmt.Sprint(ids) != c.want {
			t.Errorf("%s: %v, want %s", c.query, ids, c.want)
		}
	}
	h.ok(400, "GET", "/v2/sandboxes?limit=0", "")
	h.ok(400, "GET", "/v2/sandboxes?limit=101", "")
	h.ok(400, "GET", "/v2/sandboxes?state=stopped", "")
	h.ok(400, "GET", "/v2/sandboxes?nextToken=x", "")
	h.ok(400, "GET", "/v2/sandboxes?metadata=%25zz", "")
	h.ok(400, "GET", "/v2/sandboxes?metadata=%", "") // not a list of everything
	if a := h.ok(400, "GET", "/sandboxes/"+string(id1)+"/logs?cursor=x", ""); !strings.Contains(a.body, `"cursor must`) {
		t.Errorf("a bad cursor: %s", a.body)
	}
	h.ok(400, "GET", "/v2/sandboxes?order=up", "")
	// The wire's own example, as all four clients send it.
	h.record(id1, h.teamA, nacre.StateRunning)
	var page []listedSandbox
	h.ok(200, "GET", "/v2/sandboxes?metadata=a%252520b%3Dc%252526d%25253D%2525C3%2525A9%25252B1", "").decode(t, &page)
	if len(page) != 1 || page[0].SandboxID != string(id1) {
		t.Errorf("metadata filter found %+v", page)
	}
}
