package moru

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
)

// TestEveryOperationIsAnswered walks the operations that the two services' own
// clients and descriptions name: each is offered, or refused by name.
func TestEveryOperationIsAnswered(t *testing.T) {
	h := newHarness(t)
	file, err := os.ReadFile("testdata/operations.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(file)) {
		method, path, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(method, "#") {
			continue
		}
		n++
		a := h.do(method, fill(path, string(id1)), h.keyA, "{}")
		if a.status == 405 || a.status == 404 && strings.Contains(a.body, "no such path") {
			t.Errorf("%s %s is neither routed nor refused by name: %d %s", method, path, a.status, a.body)
		}
		if a.status == 501 && !strings.Contains(a.body, path[:strings.IndexAny(path+"{", "{")]) {
			t.Errorf("%s %s: the refusal names another operation: %s", method, path, a.body)
		}
	}
	if n < 70 {
		t.Fatalf("only %d operations were read", n)
	}
}

// TestRoutesAreReachable: no route of the table is hidden behind an earlier one.
func TestRoutesAreReachable(t *testing.T) {
	h := newHarness(t)
	for _, r := range h.dialect.routes() {
		h.log.Reset()
		h.do(r.Method, fill(r.Path, "x9"), "", "")
		if !strings.Contains(h.log.String(), "route="+r.Path) && !strings.Contains(h.log.String(), `route="`+r.Path+`"`) {
			t.Errorf("%s %s is answered by another route: %s", r.Method, r.Path, h.log)
		}
	}
}

// fill puts an id into every {name} of a path.
func fill(path, id string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if strings.HasPrefix(s, "{") {
			segments[i] = id
		}
	}
	return strings.Join(segments, "/")
}

// bodies are good requests, so that only the owner can be what is wrong.
var bodies = map[string]string{
	"/sandboxes/{id}/timeout":    `{"timeout":60}`,
	"/sandboxes/{id}/connect":    `{"timeout":60}`,
	"/v2/sandboxes/{id}/connect": `{}`,
	"/sandboxes/{id}/refreshes":  `{"duration":60}`,
	"/sandboxes/{id}/network":    `{"denyOut":["0.0.0.0/0"]}`,
	"/sandboxes":                 `{"templateID":"base"}`,
	"/v2/sandboxes":              `{"templateID":"base"}`,
	"/api-keys":                  `{"name":"x"}`,
	"/sandboxes/{id}/restore":    `{"snapshotID":"saaaaaaaaaaaaaaaaaa1:default"}`,
}

// TestFault36_OtherTeamsIDs sends every route of the table the other team's ids:
// nothing may be read, changed or even known to exist.
func TestFault36_OtherTeamsIDs(t *testing.T) {
	h := newHarness(t)
	mine := h.record(id1, h.teamA, nacre.StateRunning)
	ended := h.record(id2, h.teamA, nacre.StateEnded)
	h.service.AddLog(id1, nacre.LogEntry{Time: h.clock(), Message: "a secret line"})
	h.service.AddMetric(id1, nacre.Metric{Time: h.clock(), CPUCount: 77})
	h.snapshot(snap1, h.teamA, "nightly", id1)
	keys, _ := h.teams.Keys(t.Context(), h.teamA)

	ids := []string{string(id1), string(id2), keys[0].ID, string(h.teamA), string(snap1), "nightly", string(snap1) + ":default"}
	never := "iaaaaaaaaaaaaaaaaaaa9"
	for _, r := range h.dialect.routes() {
		for _, id := range ids {
			target := fill(r.Path, id)
			switch r.Path {
			case "/sandboxes/metrics":
				target += "?sandbox_ids=" + id
			case "/snapshots":
				target += "?name=" + id
			}
			a := h.do(r.Method, target, h.keyB, bodies[r.Path])
			for _, secret := range []string{"a secret line", `"cpuCount":77`, string(h.teamA), "c&d", h.keyA, `"oom"`, "1024 MiB", "before the upgrade", "of the snapshot"} {
				if strings.Contains(strings.ReplaceAll(a.body, id, ""), secret) {
					t.Errorf("%s %s told the other team %q: %s", r.Method, target, secret, a.body)
				}
			}
			if r.Path == "/snapshots" && strings.TrimSpace(a.body) != "[]" {
				t.Errorf("the other team listed %s", a.body)
			}
			if !strings.Contains(r.Path, "{") {
				continue
			}
			if a.status < 400 {
				t.Errorf("%s %s: %d for the other team", r.Method, target, a.status)
			}
			unknown := h.do(r.Method, fill(r.Path, never), h.keyB, bodies[r.Path])
			if unknown.status != a.status || strings.ReplaceAll(unknown.body, never, "") != strings.ReplaceAll(a.body, id, "") && nacre.SandboxID(id).Valid() {
				t.Errorf("%s %s: %q differs from an id that never was: %q", r.Method, target, a.body, unknown.body)
			}
		}
		if !r.Public {
			if a := h.do(r.Method, fill(r.Path, string(id1)), "", bodies[r.Path]); a.status != http.StatusUnauthorized {
				t.Errorf("%s %s without a key: %d", r.Method, r.Path, a.status)
			}
		}
	}
	for _, want := range []nacre.Sandbox{mine, ended} {
		got, err := h.service.Get(t.Context(), h.teamA, want.ID)
		if err != nil || got.State != want.State || !got.Deadline.Equal(want.Deadline) || len(got.Network.AllowOut) != 1 {
			t.Errorf("the other team changed %s: %+v %v", want.ID, got, err)
		}
	}
	if left, err := h.service.GetSnapshot(t.Context(), h.teamA, snap1); err != nil || len(h.service.Forks()) > 0 {
		t.Errorf("the other team used or deleted the snapshot: %+v %v %v", left, err, h.service.Forks())
	}
	if now, _ := h.teams.Keys(t.Context(), h.teamA); len(now) != 1 || !now[0].RevokedAt.IsZero() {
		t.Errorf("the other team changed the keys: %+v", now)
	}
}
