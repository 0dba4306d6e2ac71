package moru

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestTrap01_EveryErrorHasABody: an empty body makes one client raise on its
// parser and the other believe that a kill succeeded.
func TestTrap01_EveryErrorHasABody(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{"templateID":"base"}`).SandboxID
	for _, c := range []struct {
		method, target, body string
		status               int
	}{
		{"GET", "/", "", 404},
		{"GET", "/nothing", "", 404},
		{"GET", "//sandboxes", "", 404},
		{"GET", "/sandboxes/", "", 404},
		{"GET", "/sandboxes/%2e%2e/" + id, "", 404},
		{"PUT", "/sandboxes", "", 405},
		{"PATCH", "/sandboxes/" + id, "", 405},
		{"POST", "/sandboxes", "", 400},
		{"POST", "/sandboxes", "{", 400},
		{"POST", "/sandboxes", `[]`, 400},
		{"POST", "/sandboxes", `{} {}`, 400},
		{"POST", "/sandboxes", `{"templateID":"nope"}`, 404},
		{"POST", "/sandboxes", `{"templateID":"base","autoPauseMemory":false,"autoResume":{"enabled":true}}`, 400},
		{"POST", "/sandboxes", `{"templateID":"base:v2"}`, 404},
		{"POST", "/sandboxes", `{"volumeId":"vol_1"}`, 501},
		{"POST", "/sandboxes", `{"x":"` + strings.Repeat("a", 1<<20) + `"}`, 413},
		{"DELETE", "/sandboxes/" + string(id1), "", 404},
		{"POST", "/sandboxes/" + id + "/timeout", `{}`, 400},
		{"POST", "/sandboxes/" + string(id1) + "/timeout", `{"timeout":1}`, 404},
		{"POST", "/sandboxes/" + string(id1) + "/connect", `{"timeout":1}`, 404},
		{"POST", "/sandboxes/" + string(id1) + "/pause", "", 404},
		{"POST", "/sandboxes/" + id + "/pause", "[]", 400},
		{"POST", "/sandboxes/" + string(id1) + "/resume", `{"timeout":1}`, 404},
		{"POST", "/sandboxes/" + id + "/resume", `{"timeout":1}`, 409},
		{"POST", "/sandboxes/" + string(id1) + "/snapshots", "{}", 404},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"name":"a/b"}`, 400},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"expiresIn":-1}`, 400},
		{"POST", "/sandboxes/" + string(id1) + "/fork", "{}", 404},
		{"POST", "/sandboxes/" + id + "/fork", `{"count":0}`, 400},
		{"POST", "/sandboxes/" + id + "/fork", `{"count":101}`, 400},
		{"POST", "/sandboxes/" + id + "/fork", `{"count":1.5}`, 400},
		{"POST", "/sandboxes/" + id + "/restore", `{}`, 400},
		{"POST", "/sandboxes/" + id + "/restore", `{"snapshotID":"nope:default"}`, 404},
		{"GET", "/snapshots?limit=0", "", 400},
		{"DELETE", "/templates/nope:default", "", 404},
		{"DELETE", "/templates/base", "", 501},
		{"GET", "/sandboxes/" + id + "/metrics?start=x", "", 400},
		{"GET", "/sandboxes/" + id + "/logs?limit=1001", "", 400},
		{"GET", "/templates/nope", "", 404},
	} {
		t.Run(fmt.Sprintf("%s %.40s %.20s", c.method, c.target, c.body), func(t *testing.T) {
			h.do(c.method, c.target, h.keyA, c.body).isError(t, c.status)
		})
	}
	h.service.Fail = func(string) error { panic("a bug with a secret in it") }
	if msg := h.do("GET", "/sandboxes", h.keyA, "").isError(t, 500); strings.Contains(msg, "bug") {
		t.Errorf("the panic's text reached the client: %s", msg)
	}
	h.service.Fail = func(string) error { return errors.New("an error without a code: /var/lib") }
	if msg := h.do("GET", "/sandboxes", h.keyA, "").isError(t, 500); strings.Contains(msg, "/var/lib") {
		t.Errorf("the cause reached the client: %s", msg)
	}
}

// TestStatuses: each code of the domain has a status, and the two that may be
// tried again say when.
func TestStatuses(t *testing.T) {
	h := newHarness(t)
	for code, status := range statuses {
		h.service.Fail = func(string) error { return nacre.Errorf(code, "why") }
		a := h.do("GET", "/sandboxes", h.keyA, "")
		a.isError(t, status)
		retry := a.header.Get("Retry-After") != ""
		if want := code == nacre.CodeExhausted || code == nacre.CodeUnavailable; retry != want {
			t.Errorf("%s: Retry-After %v, want %v", code, retry, want)
		}
	}
}

// TestErrorsNameTheField: a wrong type or value is answered with its field.
func TestErrorsNameTheField(t *testing.T) {
	h := newHarness(t)
	for body, field := range map[string]string{
		`{"timeout":"5m"}`:                                        "timeout",
		`{"timeout":0}`:                                           "timeout",
		`{"timeout":-1}`:                                          "timeout",
		`{"timeout":1e300}`:                                       "timeout",
		`{"metadata":{"nacre:workspace_id":"1"}}`:                 "metadata",
		`{"metadata":{"a":1}}`:                                    "metadata",
		`{"network":{"allowOut":"1.1.1.1"}}`:                      "network.allowOut",
		`{"network":{"maskRequestHost":"a\nb"}}`:                  "network.maskRequestHost",
		`{"network":{"rules":{"x":[]}}}`:                          "network.rules",
		`{"secure":"yes"}`:                                        "secure",
		`{"autoPauseMemory":false,"autoResume":{"enabled":true}}`: "autoResume",
		`{"volumeMounts":[{"name":"v"}]}`:                         "volumeMounts",
		`null`:                                                    "JSON body",
		`[]`:                                                      "not an array",
		`{"secure":false,"network":{"allowPublicTraffic":false}}`: "network.allowPublicTraffic",
	} {
		a := h.do("POST", "/sandboxes", h.keyA, body)
		if a.status != 400 && a.status != 501 || !strings.Contains(a.body, field) {
			t.Errorf("%s: %d %s, want the field %s", body, a.status, a.body, field)
		}
	}
	if n := len(h.service.Requests()); n != 0 {
		t.Errorf("%d bad creates went through", n)
	}
}

// TestErrorsUseTheWiresNames: what the service refuses is said with the field as the
// client spelled it.
func TestErrorsUseTheWiresNames(t *testing.T) {
	for want, err := range map[string]error{
		`allowOut: "x" is no address`:       nacre.Invalidf("AllowOut", "AllowOut: %q is no address", "x"),
		`envVars: "A=B" is not a name`:      nacre.Invalidf("Env", "%q is not a name", "A=B"),
		`the value of "A" in envVars`:       nacre.Invalidf("Env", "the value of %q in Env", "A"),
		"metadata has 65 entries":           nacre.Invalidf("Metadata", "Metadata has 65 entries"),
		"Timeout cannot be greater":         nacre.Invalidf("Timeout", "Timeout cannot be greater"),
		"the nextToken is not one":          nacre.Invalidf("Cursor", "the Cursor is not one"),
		"templateID: the template's name":   nacre.Invalidf("Template", "the template's name"),
		"Resources.CPUs: there are so many": nacre.Invalidf("Resources.CPUs", "there are so many"),
		"what has no field":                 nacre.Errorf(nacre.CodeInvalid, "what has no field"),
	} {
		if got := messageOf(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestTrap02_EverySandboxHasItsOwnToken: the edge routes by it, also for those
// that are not secure.
func TestTrap02_EverySandboxHasItsOwnToken(t *testing.T) {
	h := newHarness(t)
	seen := map[string]bool{}
	for _, body := range []string{`{"secure":true}`, `{"secure":false}`, `{}`, `{"secure":null}`} {
		s := h.create(body)
		id, _, ok := h.dialect.TokenKey.ParseAccessToken(s.EnvdAccessToken)
		if !ok || string(id) != s.SandboxID || seen[s.EnvdAccessToken] {
			t.Errorf("%s: token %q of %s", body, s.EnvdAccessToken, s.SandboxID)
		}
		seen[s.EnvdAccessToken] = true
		if s.TrafficAccessToken != nil {
			t.Errorf("%s: a public sandbox has a traffic token", body)
		}
	}
	for i, want := range []bool{true, false, true, true} {
		if got := h.service.Requests()[i].Secure; got != want {
			t.Errorf("request %d: secure %v, want %v", i, got, want)
		}
	}
}

// TestTrap03_VolumeFilesWithoutAKey: one client sends no key with a volume's files.
// It reads that the key is missing, not an empty body, and learns nothing of volumes.
func TestTrap03_VolumeFilesWithoutAKey(t *testing.T) {
	h := newHarness(t)
	for _, op := range [][2]string{
		{"PUT", "/volumes/vol_1/files/upload?path=/a"},
		{"GET", "/volumes/vol_1/files/download?path=/a"},
	} {
		h.do(op[0], op[1], "", "").isError(t, 401)
		h.do(op[0], op[1], h.keyA, "").isError(t, 501)
	}
}

// TestTrap04_BothFormsOfAMountPath: the documents write /workspace, which the clients
// refuse, and the clients /workspace/. Neither is what is wrong with a create that mounts.
func TestTrap04_BothFormsOfAMountPath(t *testing.T) {
	h := newHarness(t)
	answers := map[string]bool{}
	for _, path := range []string{"/workspace", "/workspace/", "/workspace/x"} {
		a := h.do("POST", "/sandboxes", h.keyA, `{"volumeId":"vol_1","volumeMountPath":"`+path+`"}`)
		a.isError(t, 501)
		answers[a.body] = true
	}
	if len(answers) != 1 || len(h.service.Requests()) != 0 {
		t.Errorf("%d answers, %d requests", len(answers), len(h.service.Requests()))
	}
}

// TestTrap06_TokenIsNeverOmitted: an answer without the field makes a client's
// download_url raise.
func TestTrap06_TokenIsNeverOmitted(t *testing.T) {
	h := newHarness(t)
	a := h.ok(201, "POST", "/sandboxes", `{"secure":false}`)
	for _, field := range []string{`"envdAccessToken":"`, `"trafficAccessToken":null`, `"domain":"nacre.localhost:8443"`} {
		if !strings.Contains(a.body, field) {
			t.Errorf("%s is missing in %s", field, a.body)
		}
	}
}

// TestTrap08_IDsAreCutAtDashes: an id has none, so the cut one is the whole one.
func TestTrap08_IDsAreCutAtDashes(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{}`).SandboxID
	cut, _, _ := strings.Cut(id, "-")
	h.ok(200, "GET", "/sandboxes/"+cut, "")
}

// TestFault28_Timeouts: nothing but a positive number of seconds is a timeout,
// and what is no timeout changes nothing.
func TestFault28_Timeouts(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{"timeout":300}`).SandboxID
	for _, bad := range []string{"0", "-5", "-0.5", `"60"`, "1e30", "300000", "[]", "null"} {
		for _, path := range []string{"/timeout", "/connect", "/resume", "/fork"} {
			if path != "/timeout" && bad == "null" {
				continue // E2B's clients leave it out there
			}
			h.do("POST", "/sandboxes/"+id+path, h.keyA, `{"timeout":`+bad+`}`)
			var d sandboxDetail
			h.ok(200, "GET", "/sandboxes/"+id, "").decode(t, &d)
			want := h.clock().Add(300 * time.Second)
			if bad == "300000" { // the service's limit, not the dialect's: the fake has none here
				want = h.clock().Add(300000 * time.Second)
			}
			if d.EndAt != timestamp(want) {
				t.Fatalf("%s %s: the end is %s, want %s", path, bad, d.EndAt, timestamp(want))
			}
		}
		h.ok(204, "POST", "/sandboxes/"+id+"/timeout", `{"timeout":300.0}`)
	}
	h.ok(400, "POST", "/sandboxes", `{"timeout":300000}`) // milliseconds by mistake
}

// TestFault30_StrangeIDs: an id that cannot exist is unknown, wherever it stands.
func TestFault30_StrangeIDs(t *testing.T) {
	h := newHarness(t)
	for _, id := range []string{
		"..", "a%2Fb", "%00", "i%0d%0aX-Evil:1", "'%20OR%201=1--", "$(reboot)", "%F0%9F%A6%AA",
		"IAAAAAAAAAAAAAAAAAAA1", strings.Repeat("i", 5000), "debug_sandbox_id", "team_x", "i%C3%A9aaaaaaaaaaaaaaaaaa",
	} {
		for _, method := range []string{"GET", "DELETE"} {
			a := h.do(method, "/sandboxes/"+id, h.keyA, "")
			a.isError(t, 404)
			if a.header.Get("X-Evil") != "" {
				t.Errorf("%s split a header", id)
			}
		}
	}
	if log := h.log.String(); strings.Contains(log, "\nX-Evil") {
		t.Errorf("an id broke the log:\n%s", log)
	}
}

// TestFault32_HostileJSON: garbage is refused in time and in words.
func TestFault32_HostileJSON(t *testing.T) {
	h := newHarness(t)
	for _, body := range []string{
		strings.Repeat("[", 500_000),
		`{"metadata":` + strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000) + "}",
		"\x00\xff\xfe", "NaN", `{"timeout":Infinity}`, `{"timeout":1` + strings.Repeat("0", 400) + `}`,
		strings.Repeat(" ", 1<<20+1),
	} {
		a := h.do("POST", "/sandboxes", h.keyA, body)
		if a.status != 400 && a.status != 413 {
			t.Errorf("%.20q: %d %s", body, a.status, a.body)
		}
		a.isError(t, a.status)
	}
	// Unknown fields are the clients' future, duplicates their bugs.
	h.ok(201, "POST", "/sandboxes", `{"templateID":"nope","templateID":"base","mcp":{"x":1},"newer":[1,2]}`)
}

// TestFault37_RevokedKey: within a second a revoked key is worthless, even when
// another process revoked it.
func TestFault37_RevokedKey(t *testing.T) {
	h := newHarness(t)
	h.ok(200, "GET", "/sandboxes", "")
	keys, _ := h.teams.Keys(t.Context(), h.teamA)
	_ = h.teams.RevokeKey(t.Context(), h.teamA, keys[0].ID)
	h.advance(time.Second)
	h.do("GET", "/sandboxes", h.keyA, "").isError(t, 401)
	for _, key := range []string{"", "e2b_", "x", h.keyA + "0", h.keyA[:len(h.keyA)-1], strings.ToUpper(h.keyA), strings.Repeat("a", 1<<16)} {
		h.do("GET", "/sandboxes", key, "").isError(t, 401)
	}
	h.ok2(t, "GET", "/health")
}

// ok2 is a call without a key.
func (h *harness) ok2(t *testing.T, method, target string) {
	t.Helper()
	if a := h.do(method, target, "", ""); a.status != http.StatusOK {
		t.Errorf("%s %s without a key: %d", method, target, a.status)
	}
}
