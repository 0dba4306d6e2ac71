package miosa

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

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

// TestEveryOperationIsAnswered walks the operations that the published clients and
// documents name: each is offered, or refused by name.
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
		a := h.do(method, fill(path, "x9"), h.keyA, "{}")
		if a.status == 405 || a.status == 404 && strings.Contains(a.body, "no such path") {
			t.Errorf("%s %s is neither routed nor refused by name: %d %s", method, path, a.status, a.body)
		}
		if a.status == 501 && (!strings.Contains(a.body, "NOT_SUPPORTED") || !strings.Contains(a.body, path[:strings.IndexAny(path+"{", "{")])) {
			t.Errorf("%s %s: the refusal names another operation: %s", method, path, a.body)
		}
	}
	if n < 150 {
		t.Fatalf("only %d operations were read", n)
	}
}

// TestRoutesAreReachable: no route of the table is hidden behind an earlier one.
func TestRoutesAreReachable(t *testing.T) {
	h := newHarness(t)
	for _, r := range h.api.routes() {
		h.log.take()
		h.do(r.Method, strings.TrimPrefix(fill(r.Path, "x9"), Prefix), "", "")
		log := h.log.take()
		if !strings.Contains(log, "route="+r.Path) && !strings.Contains(log, `route="`+r.Path+`"`) {
			t.Errorf("%s %s is answered by another route: %s", r.Method, r.Path, log)
		}
	}
}

// TestFault36_OtherTeamsIDs sends every route of the table the other team's ids:
// nothing may be read, changed or even known to exist.
func TestFault36_OtherTeamsIDs(t *testing.T) {
	h := newHarness(t)
	box := h.create(`{"name":"hidden-name","slug":"hidden-slug","metadata":{"k":"hidden-meta"},"env":{"E":"hidden-env"},"timeout_sec":777}`)
	h.ok(200, "POST", "/sandboxes/"+box+"/fs/write", `{"path":"/workspace/f","content":"hidden-file"}`)
	pid := h.ok(201, "POST", "/sandboxes/"+box+"/processes", `{"command":"echo hidden-output; sleep 1000"}`).field(t, "pid")
	term := h.ok(201, "POST", "/sandboxes/"+box+"/processes", `{"command":"sleep 1000","name":"hidden-job"}`).field(t, "pid")
	snap := h.ok(201, "POST", "/sandboxes/"+box+"/snapshots", `{"comment":"hidden-comment"}`).field(t, "id")
	view := h.ok(201, "POST", "/sandboxes/"+box+"/previews", `{"port":8080,"visibility":"private","slug":"hidden-preview"}`).field(t, "id")
	share := h.ok(201, "POST", "/sandboxes/"+box+"/previews/"+view+"/share", `{}`).field(t, "id")
	h.ok(201, "POST", "/egress/secrets", `{"name":"hidden-secret","value":"hidden-value","resource_id":"`+box+`","expose_as_env":"TOK"}`)
	secrets, err := h.db.Secrets(t.Context(), h.teamA, nacre.SecretFilter{})
	if err != nil || len(secrets) != 1 {
		t.Fatal(secrets, err)
	}
	uses, err := h.db.SecretBindings(t.Context(), h.teamA, nacre.SecretFilter{})
	if err != nil || len(uses) != 1 {
		t.Fatal(uses, err)
	}
	domain := h.ok(201, "POST", "/custom-domains", `{"domain":"hidden.example.com"}`).field(t, "id")
	site := nacre.Deployment{ID: nacre.NewDeploymentID(), TeamID: h.teamA, Name: "hidden-site", Source: nacre.SandboxID(box), Start: "hidden-start",
		State: nacre.DeploymentFailed, CreatedAt: time.Now(), UpdatedAt: time.Now()}
	if err := h.db.InsertDeployment(t.Context(), site); err != nil {
		t.Fatal(err)
	}

	const never = "iaaaaaaaaaaaaaaaaaaa9"
	ids := map[string]string{
		"{id}": box, "{pid}": pid, "{snapshot}": snap, "{preview}": view, "{share}": share, "{secret}": string(secrets[0].ID),
		"{binding}": string(uses[0].ID), "{domain}": domain, "{name}": "hidden-name", "{session}": term, "{path...}": "workspace/f", "{key}": "E", "{deployment}": string(site.ID),
		"{template}": "t0000000000000000009", "{build}": "b9",
	}
	bodies := map[string]string{
		"/exec": `{"command":"echo broken-in"}`, "/exec/stream": `{"command":"echo broken-in"}`, "/processes": `{"command":"true"}`,
		"/commands": `{"command":"true"}`, "/fs/write": `{"path":"/workspace/f","content":"broken-in"}`, "/files": `{"path":"/workspace/f","content":"YQ=="}`,
		"/fs/stat": `{"path":"/workspace/f"}`, "/files/stat": `{"path":"/workspace/f"}`, "/files/mkdir": `{"path":"/workspace/d"}`,
		"/files/rename": `{"from":"/workspace/f","to":"/workspace/g"}`, "/files/copy": `{"from":"/workspace/f","to":"/workspace/g"}`,
		"/files/chmod": `{"path":"/workspace/f","mode":"0777"}`, "/files/export": `{"path":"/workspace/f"}`, "/exports": `{"path":"/workspace/f"}`,
		"/fs/write-many": `{"files":[]}`, "/files/write-many": `{"files":[]}`, "/tags": `{"tags":["broken-in"]}`, "/extend": `{"timeout_sec":9}`,
		"/deploy": `{"deployment_id":"` + string(site.ID) + `","start_command":"broken-in"}`, "/previews": `{"port":80}`, "/previews/{preview}": `{"visibility":"public"}`, "/expose": `{"port":80}`,
	}
	fillAll := func(path string, with func(name string) string) string {
		segments := strings.Split(strings.TrimPrefix(path, Prefix), "/")
		for i, s := range segments {
			if strings.HasPrefix(s, "{") {
				segments[i] = with(s)
			}
		}
		return strings.Join(segments, "/")
	}
	query := "?path=/workspace/f&resource_id=" + box + "&sandbox_id=" + box + "&external_user_id="
	for _, r := range h.api.routes() {
		suffix := strings.TrimPrefix(strings.TrimPrefix(r.Path, Prefix), "/sandboxes/{id}")
		body := bodies[suffix]
		if r.Method == "GET" {
			body = ""
		} else if body == "" {
			body = "{}"
		}
		named := func(n string) string {
			if id := ids[n]; id != "" {
				return id
			}
			return "x9"
		}
		target := fillAll(r.Path, named)
		if strings.HasPrefix(r.Path, Prefix+"/templates") || target == "/sandboxes" && r.Method == "POST" {
			continue
		}
		a := h.do(r.Method, target+query, h.keyB, body)
		for _, secret := range []string{"hidden-meta", "hidden-env", "hidden-file", "hidden-output", "hidden-job", "hidden-comment", "hidden-preview", "hidden-secret", "hidden-value", "hidden.example.com", "hidden-slug", "hidden-site", "hidden-start", string(h.teamA), `"timeout_sec":777`} {
			if strings.Contains(a.body, secret) {
				t.Errorf("%s %s told the other team %q: %s", r.Method, target, secret, a.body)
			}
		}
		if strings.Contains(r.Path, "{") && !strings.Contains(r.Path, "build-spec") && !strings.Contains(r.Path, "validate") {
			if a.status < 400 || a.status == 500 {
				t.Errorf("%s %s: %d for the other team: %s", r.Method, target, a.status, a.body)
			}
			unknown := h.do(r.Method, fillAll(r.Path, func(n string) string {
				if n == "{id}" {
					return never
				}
				return named(n)
			})+query, h.keyB, body)
			if unknown.status != a.status {
				t.Errorf("%s %s: %d, but %d for an id that never was", r.Method, target, a.status, unknown.status)
			}
		}
		if a := h.do(r.Method, target, "", body); a.status != http.StatusUnauthorized {
			t.Errorf("%s %s without a key: %d %s", r.Method, r.Path, a.status, a.body)
		}
	}
	h.ok(200, "GET", "/sandboxes/"+box, "")
	if got := h.ok(200, "GET", "/sandboxes/"+box+"/files/workspace/f", ""); got.body != "hidden-file" {
		t.Errorf("the other team changed a file: %s", got.body)
	}
	for _, still := range []string{"/sandboxes/" + box + "/processes/" + pid, "/snapshots/" + snap, "/sandboxes/" + box + "/previews/" + view, "/egress/secrets/" + string(secrets[0].ID),
		"/deployments/" + string(site.ID), "/deployments/hidden-site"} {
		h.ok(200, "GET", still, "")
	}
	for path, n := range map[string]int{"/sandboxes/" + box + "/shares": 1, "/egress/bindings": 1, "/custom-domains": 1, "/sandboxes/" + box + "/previews": 1} {
		if a := h.ok(200, "GET", path, ""); strings.Count(a.body, `"created_at"`) != n {
			t.Errorf("GET %s: %s, want %d", path, a.body, n)
		}
	}
	if a := h.ok(200, "GET", "/sandboxes/"+box, ""); !strings.Contains(a.body, `"timeout_sec":777`) || strings.Contains(a.body, "broken-in") {
		t.Errorf("the other team changed the sandbox: %s", a.body)
	}
}

// TestErrorsHaveOneForm: every refusal has the parts that the clients look for.
// TestAMisfitIsToldFromDamage: both are conflicts that no repeat mends.
func TestAMisfitIsToldFromDamage(t *testing.T) {
	for code, want := range map[nacre.Code]string{nacre.CodeMismatch: "SNAPSHOT_MISMATCH", nacre.CodeConflict: "RESOURCE_STATE"} {
		w := httptest.NewRecorder()
		writeError(w, httptest.NewRequest(http.MethodPost, "/", nil), nacre.Errorf(code, "the reason"))
		var e errorBody
		decode(t, w.Body.String(), &e)
		if w.Code != http.StatusConflict || e.Code != want || e.Message != "the reason" || e.Error.Retryable {
			t.Errorf("%s: %d %+v", code, w.Code, e)
		}
	}
}

func TestErrorsHaveOneForm(t *testing.T) {
	h := newHarness(t)
	box := h.create(`{}`)
	for _, c := range []struct {
		method, path, key, body string
		status                  int
		code                    string
	}{
		{"GET", "/sandboxes", "", "", 401, "UNAUTHENTICATED"},
		{"GET", "/sandboxes", "msk_u_" + strings.Repeat("0", 40), "", 401, "UNAUTHENTICATED"},
		{"GET", "/no/such", h.keyA, "", 404, "NOT_FOUND"},
		{"PUT", "/sandboxes", h.keyA, "", 405, "METHOD_NOT_ALLOWED"},
		{"GET", "/sandboxes/x", h.keyA, "", 404, "SANDBOX_NOT_FOUND"},
		{"POST", "/sandboxes", h.keyA, "{", 422, "VALIDATION_FAILED"},
		{"POST", "/sandboxes", h.keyA, "[]", 422, "VALIDATION_FAILED"},
		{"POST", "/sandboxes", h.keyA, `{"cpu_count":"x"}`, 422, "VALIDATION_FAILED"},
		{"POST", "/sandboxes", h.keyA, `{"template_id":"no-such"}`, 404, "TEMPLATE_NOT_FOUND"},
		{"POST", "/sandboxes", h.keyA, `{"services":[{"name":"x"}]}`, 501, "NOT_SUPPORTED"},
		{"POST", "/sandboxes", h.keyA, `{"metadata":{"nacre:x":"y"}}`, 422, "VALIDATION_FAILED"},
		{"POST", "/sandboxes", h.keyA, `{"name":"` + strings.Repeat("x", 300) + `"}`, 422, "VALIDATION_FAILED"},
		{"GET", "/sandboxes?state=odd", h.keyA, "", 422, "VALIDATION_FAILED"},
		{"POST", "/sandboxes/" + box + "/commands", h.keyA, `{"command":"x","timeout_seconds":601}`, 422, "TIMEOUT_TOO_LONG"},
		{"POST", "/sandboxes/" + box + "/exec", h.keyA, `{"command":"true","cwd":"/missing"}`, 422, "VALIDATION_FAILED"},
		{"POST", "/sandboxes/" + box + "/fs/stat", h.keyA, `{"path":"rel"}`, 422, "INVALID_PATH"},
		{"PATCH", "/sandboxes/" + box + "/resources", h.keyA, `{}`, 409, "RESIZE_UNSUPPORTED"},
		{"PUT", "/sandboxes/" + box + "/env", h.keyA, `{}`, 409, "ENV_READ_ONLY"},
		{"POST", "/sandbox-templates/validate", h.keyA, `{"build_spec":{}}`, 422, "INVALID_BUILDSPEC"},
		{"POST", "/sandbox-templates", h.keyA, `{}`, 501, "NOT_SUPPORTED"},
		{"POST", "/sandboxes", h.keyA, `{"metadata":{"x":"` + strings.Repeat("y", 1<<20) + `"}}`, 413, "TOO_LARGE"},
	} {
		a := h.do(c.method, c.path, c.key, c.body)
		var e errorBody
		decode(t, a.body, &e)
		if a.status != c.status || e.Code != c.code || e.Error.Code != c.code || e.Message == "" || e.Error.Message != e.Message ||
			e.Error.RequestID == "" || e.Error.RequestID != a.header.Get("X-Request-Id") || e.Error.Details == nil {
			t.Errorf("%s %s %.60s: %d %s, want %d %s", c.method, c.path, c.body, a.status, a.body, c.status, c.code)
		}
	}
	if a := h.do("POST", "/sandboxes/"+box+"/exec", h.keyA, `{"command":"true","cwd":"/missing"}`); !strings.Contains(a.body, `"details":{"field":"cwd"}`) {
		t.Errorf("a directory that is not there: %s", a.body)
	}
	if a := h.do("POST", "/sandboxes", h.keyA, "{}", "X-Request-Id", "mine-1"); a.header.Get("X-Request-Id") != "mine-1" {
		t.Error("a given request id is kept")
	}
}
