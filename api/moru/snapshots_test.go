package moru

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestNothingOfPausingIsRefused: what was answered 501 before is offered.
func TestNothingOfPausingIsRefused(t *testing.T) {
	h := newHarness(t)
	for _, op := range [][2]string{
		{"POST", "/sandboxes/{id}/pause"}, {"POST", "/sandboxes/{id}/resume"}, {"POST", "/sandboxes/{id}/connect"},
		{"POST", "/sandboxes/{id}/snapshots"}, {"POST", "/sandboxes/{id}/fork"}, {"POST", "/sandboxes/{id}/restore"},
		{"GET", "/snapshots"},
	} {
		if a := h.do(op[0], fill(op[1], string(id1)), h.keyA, "{}"); a.status == 501 {
			t.Errorf("%v: %s", op, a.body)
		}
	}
	h.ok(201, "POST", "/sandboxes", `{"templateID":"base","autoPause":true,"autoPauseMemory":false}`)
	h.ok(201, "POST", "/v2/sandboxes", `{"templateID":"base","autoPause":true,"autoResume":{"enabled":true}}`)
	r := h.service.Requests()
	if r[0].OnTimeout != nacre.TimeoutPause || !r[0].FilesOnly || r[0].AutoResume {
		t.Errorf("%+v", r[0])
	}
	if r[1].OnTimeout != nacre.TimeoutPause || r[1].FilesOnly || !r[1].AutoResume {
		t.Errorf("%+v", r[1])
	}
}

// TestWire1_5_PauseAndConnect: 204, 409, then 201 once and 200 after, with id,
// token and the rest as they were.
func TestWire1_5_PauseAndConnect(t *testing.T) {
	h := newHarness(t)
	before := h.create(`{"templateID":"base","timeout":300,"network":{"allowPublicTraffic":false}}`)
	path := "/sandboxes/" + before.SandboxID
	for i, version := range []string{"", "/v2"} {
		h.ok(204, "POST", path+"/pause", []string{"", `{"memory":true}`}[i])
		h.do("POST", path+"/pause", h.keyA, "{}").isError(t, 409)
		h.do("POST", path+"/timeout", h.keyA, `{"timeout":60}`).isError(t, 409)
		var d sandboxDetail
		h.ok(200, "GET", path, "").decode(t, &d)
		if d.State != "paused" || d.SandboxID != before.SandboxID {
			t.Fatalf("%+v", d)
		}
		var listed []listedSandbox
		h.ok(200, "GET", "/v2/sandboxes?state=paused", "").decode(t, &listed)
		if len(listed) != 1 {
			t.Fatalf("%d paused ones are listed", len(listed))
		}
		var after sandbox
		h.ok(201, "POST", version+path+"/connect", []string{`{"timeout":5}`, `{}`}[i]).decode(t, &after)
		if after.EnvdAccessToken != before.EnvdAccessToken || *after.TrafficAccessToken != *before.TrafficAccessToken ||
			*after.Domain != *before.Domain || after.BootPath != "warm" {
			t.Fatalf("after the resume %+v, before %+v", after, before)
		}
		h.ok(200, "POST", version+path+"/connect", `{"timeout":5}`)
	}
	if r := h.service.Resumes(); fmt.Sprint(r) != fmt.Sprint([]nacre.ResumeRequest{{Timeout: 5 * time.Second}, {Timeout: 5 * time.Minute}}) {
		t.Errorf("resumed with %v", r)
	}
}

// TestE2BFilesOnly: a pause without memory, and resumes that boot.
func TestE2BFilesOnly(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{"templateID":"base","timeout":900}`).SandboxID
	h.ok(204, "POST", "/sandboxes/"+id+"/pause", `{"memory":false,"requireHealthyGuest":true}`)
	if p := h.service.Pauses(); len(p) != 1 || !p[0].FilesOnly || !p[0].Healthy {
		t.Errorf("paused with %+v", p)
	}
	var s sandbox
	h.ok(201, "POST", "/sandboxes/"+id+"/resume", "").decode(t, &s)
	if s.BootPath != "cold" {
		t.Errorf("resumed by %q", s.BootPath)
	}
	h.ok(204, "POST", "/sandboxes/"+id+"/pause", "{}")
	h.ok(201, "POST", "/sandboxes/"+id+"/resume", `{"timeout":20,"memory":false,"autoPause":true}`)
	h.ok(204, "POST", "/sandboxes/"+id+"/pause", "{}")
	h.ok(201, "POST", "/v2/sandboxes/"+id+"/connect", `{"memory":false}`)
	want := []nacre.ResumeRequest{{}, {Timeout: 20 * time.Second, Boot: true}, {Timeout: 5 * time.Minute, Boot: true}}
	if r := h.service.Resumes(); fmt.Sprint(r) != fmt.Sprint(want) {
		t.Errorf("resumed with %v, want %v", r, want)
	}
	h.ok(204, "POST", "/sandboxes/"+id+"/pause", "{}")
	h.ok(204, "DELETE", "/sandboxes/"+id, "")
	h.do("POST", "/sandboxes/"+id+"/connect", h.keyA, "{}").isError(t, 404)
}

// list returns the ids of a list of snapshots.
func (h *harness) listed(query string) (ids []string, next string) {
	h.t.Helper()
	a := h.ok(200, "GET", "/snapshots"+query, "")
	var page []snapshot
	a.decode(h.t, &page)
	for _, s := range page {
		ids = append(ids, s.SnapshotID)
	}
	return ids, a.header.Get("X-Next-Token")
}

// TestSnapshotIDs: each form that the wire knows leads to the snapshot, for
// creates, lists and deletes.
func TestSnapshotIDs(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{"templateID":"base"}`).SandboxID
	take := func(body string) snapshot {
		var s snapshot
		h.advance(time.Second)
		h.ok(201, "POST", "/sandboxes/"+id+"/snapshots", body).decode(t, &s)
		return s
	}
	plain, old := take("{}"), take(`{"name":"nightly"}`)
	young := take(`{"name":"nightly:default","memory":false,"comment":"c","expiresIn":3600}`)
	full := string(h.teamA) + "/nightly:default"
	if plain.SnapshotID != plain.ID+":default" || len(plain.Names) != 0 || old.SnapshotID != full || young.SnapshotID != full ||
		young.Names[0] != full || young.Memory || young.Comment != "c" || young.ExpiresAt == "" {
		t.Fatalf("%+v\n%+v\n%+v", plain, old, young)
	}
	if ids, _ := h.listed(""); fmt.Sprint(ids) != fmt.Sprint([]string{full, old.ID + ":default", plain.ID + ":default"}) {
		t.Errorf("listed %v", ids)
	}
	for query, want := range map[string]int{
		"?name=nightly": 2, "?name=nightly:default": 2, "?name=" + full: 2, "?name=" + plain.ID: 1, "?name=" + plain.ID + ":default": 1,
		"?name=nightly:v2": 0, "?name=other/nightly": 0, "?sandboxID=" + id: 3, "?sandboxID=" + string(id1): 0, "?sandboxID=..": 0,
		"?name=" + plain.ID + "&sandboxID=" + string(id1): 0,
	} {
		if ids, _ := h.listed(query); len(ids) != want {
			t.Errorf("%s: %v, want %d", query, ids, want)
		}
	}
	var all []string
	for next := ""; ; {
		ids, more := h.listed("?limit=1&nextToken=" + next)
		all = append(all, ids...)
		if next = more; next == "" {
			break
		}
	}
	if len(all) != 3 {
		t.Errorf("page by page: %v", all)
	}
	for template, want := range map[string]string{
		full: young.ID, plain.SnapshotID: plain.ID, "nightly:default": "nightly", "base:default": "base", "moru-ai/base": "moru-ai/base",
	} {
		h.ok(201, "POST", "/sandboxes", `{"templateID":"`+template+`"}`)
		if r := h.service.Requests(); r[len(r)-1].Template != want {
			t.Errorf("%s: the service was asked for %q, want %q", template, r[len(r)-1].Template, want)
		}
	}
	h.ok(204, "DELETE", "/templates/"+url.PathEscape(plain.SnapshotID), "")
	h.ok(404, "DELETE", "/templates/"+url.PathEscape(plain.SnapshotID), "")
	h.ok(204, "DELETE", "/templates/"+url.PathEscape(full), "")
	if ids, _ := h.listed(""); len(ids) != 0 {
		t.Errorf("a name was deleted, left are %v", ids)
	}
	h.ok(404, "POST", "/sandboxes", `{"templateID":"`+full+`"}`)
}

// TestFault26_SnapshotInUse: who holds a snapshot is told.
func TestFault26_SnapshotInUse(t *testing.T) {
	h := newHarness(t)
	s := h.record(id1, h.teamA, nacre.StatePaused)
	h.snapshot(snap1, h.teamA, "", id1)
	s.Snapshot = snap1
	h.service.Put(s)
	if msg := h.do("DELETE", "/templates/"+string(snap1)+":default", h.keyA, "").isError(t, 409); !strings.Contains(msg, string(id1)) {
		t.Errorf("the holder is not named: %s", msg)
	}
}

// TestInternalSnapshotsAreNobodys: those between a pause and its resume, behind a
// fork and behind a template are in no list and under no id.
func TestInternalSnapshotsAreNobodys(t *testing.T) {
	h := newHarness(t)
	h.record(id1, h.teamA, nacre.StateRunning)
	for i, kind := range []nacre.SnapshotKind{nacre.SnapshotPause, nacre.SnapshotFork, nacre.SnapshotWarm} {
		s := h.snapshot(nacre.SnapshotID(fmt.Sprintf("saaaaaaaaaaaaaaaaaa%d", i)), h.teamA, "n", id1)
		s.Kind = kind
		h.service.PutSnapshot(s)
		if ids, _ := h.listed(""); len(ids) != 0 {
			t.Errorf("%s is listed", kind)
		}
		if ids, _ := h.listed("?name=" + string(s.ID)); len(ids) != 0 {
			t.Errorf("%s is found", kind)
		}
		h.ok(404, "DELETE", "/templates/"+string(s.ID)+":default", "")
		h.ok(404, "POST", "/sandboxes/"+string(id1)+"/restore", `{"snapshotID":"`+string(s.ID)+`"}`)
		h.ok(404, "POST", "/snapshots/"+string(s.ID)+"/fork", "")
	}
}

// TestFork: one outcome a copy, each exactly one of the two.
func TestFork(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{"templateID":"base","timeout":600}`).SandboxID
	fork := func(path, body string) []forkResult {
		var out []forkResult
		h.ok(201, "POST", path+"/fork", body).decode(t, &out)
		for i, r := range out {
			if (r.Sandbox == nil) == (r.Error == nil) {
				t.Errorf("%s %d: %+v", body, i, r)
			}
		}
		return out
	}
	if out := fork("/sandboxes/"+id, ""); len(out) != 1 || out[0].Sandbox.SandboxID == id || out[0].Sandbox.EnvdAccessToken == "" {
		t.Errorf("%+v", out)
	}
	out := fork("/sandboxes/"+id, `{"count":3,"timeout":60,"metadata":{"full":"1"},"envVars":{"A":"b"},"autoPause":true}`)
	if len(out) != 3 || out[0].Sandbox == nil || out[1].Error.Code != 429 || out[2].Error.Message == "" {
		t.Errorf("%+v", out)
	}
	want := nacre.ForkRequest{Sandbox: nacre.SandboxID(id), Count: 3, Timeout: time.Minute, OnTimeout: nacre.TimeoutPause,
		Metadata: map[string]string{"full": "1"}, Env: map[string]string{"A": "b"}}
	if got := h.service.Forks(); fmt.Sprint(got[1]) != fmt.Sprint(want) || got[0].Count != 1 || got[0].Timeout != 15*time.Second {
		t.Errorf("asked for %+v", got)
	}
	fork("/sandboxes/"+id, `{"inheritTimeout":true,"inheritEnv":false,"envVars":{"A":"b"}}`)
	if got := h.service.Forks()[2]; got.Timeout != 0 || !got.OwnEnv || got.Env["A"] != "b" {
		t.Errorf("asked for %+v", got)
	}
	var snap snapshot
	h.ok(201, "POST", "/sandboxes/"+id+"/snapshots", `{"name":"x"}`).decode(t, &snap)
	if out := fork("/snapshots/"+url.PathEscape(snap.SnapshotID), `{"count":2}`); len(out) != 2 || out[1].Sandbox == nil {
		t.Errorf("from the snapshot: %+v", out)
	}
	if got := h.service.Forks()[3]; got.Timeout != 0 || got.OwnEnv {
		t.Errorf("asked for %+v", got)
	}
	var back sandbox
	h.ok(200, "POST", "/sandboxes/"+id+"/restore", `{"snapshotID":"`+snap.SnapshotID+`"}`).decode(t, &back)
	if back.SandboxID != id {
		t.Errorf("restored %+v", back)
	}
}

// TestSnapshotErrors: what the service refuses has its status and its reason.
func TestSnapshotErrors(t *testing.T) {
	h := newHarness(t)
	h.record(id1, h.teamA, nacre.StateRunning)
	h.snapshot(snap1, h.teamA, "", id1)
	path := "/sandboxes/" + string(id1)
	for code, status := range map[nacre.Code]int{nacre.CodeNoSpace: 507, nacre.CodeConflict: 409, nacre.CodeExhausted: 429,
		nacre.CodeUnavailable: 503, nacre.CodeUnsupported: 501, nacre.CodeMismatch: 409, nacre.CodeDeadline: 504} {
		h.service.Fail = func(method string) error {
			if method == "GetSnapshot" || method == "Get" {
				return nil
			}
			return nacre.Errorf(code, "the reason")
		}
		for _, call := range [][2]string{
			{path + "/pause", ""}, {path + "/connect", "{}"}, {path + "/snapshots", ""}, {path + "/fork", ""},
			{path + "/restore", `{"snapshotID":"` + string(snap1) + `"}`}, {"/snapshots/" + string(snap1) + "/fork", ""},
		} {
			if msg := h.do("POST", call[0], h.keyA, call[1]).isError(t, status); msg != "the reason" {
				t.Errorf("%s: %s", call[0], msg)
			}
		}
	}
}

func FuzzSnapshotName(f *testing.F) {
	for _, seed := range []string{"nightly", "team_a/nightly:default", "saaaaaaaaaaaaaaaaaa1:default", "a/b/c", ":", "/", ":default", "team_a/:default"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		name, ok := snapshotName("team_a", ref)
		if ok && (name == "" || strings.ContainsAny(name, "/:")) {
			t.Errorf("%q is the name %q", ref, name)
		}
		if again, fine := snapshotName("team_a", "team_a/"+name+":default"); ok && (!fine || again != name) {
			t.Errorf("%q does not come back but %q", name, again)
		}
	})
}
