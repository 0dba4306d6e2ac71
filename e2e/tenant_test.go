package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
)

// adminKey is what `nacre key --json` prints.
type adminKey struct {
	ID, Team, Name, Key, Hint string
	RevokedAt                 *time.Time `json:"revoked_at"`
}

func (d *daemon) newKey(team string) adminKey {
	d.t.Helper()
	var k adminKey
	if err := json.Unmarshal([]byte(d.cli("key", "create", "--team", team, "--json")), &k); err != nil || k.Key == "" || k.ID == "" || k.Team != team {
		d.t.Fatalf("key create: %+v %v", k, err)
	}
	return k
}

func (d *daemon) clientOf(key string) *client.Client {
	d.t.Helper()
	c, err := client.New(client.WithAPIKey(key), client.WithAPIURL(d.note().APIURL), client.WithSandboxURL(d.note().APIURL))
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

// TestFault36_TwoTeams: for one team the other's sandboxes do not exist.
func TestFault36_TwoTeams(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	ours, theirs := d.client(), d.newKey("other")
	other := d.clientOf(theirs.Key)
	sb := many(t, ours, 1, client.PrivateTraffic(), client.Metadata(map[string]string{"a": "b"}))[0]
	if _, err := sb.Run(t.Context(), "echo ours"); err != nil {
		t.Fatal(err)
	}
	their, err := other.Create(t.Context(), client.Metadata(map[string]string{"a": "b"}))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for what, try := range map[string]func() error{
		"info":    func() error { _, err := other.Info(ctx, sb.ID); return err },
		"connect": func() error { _, err := other.Connect(ctx, sb.ID); return err },
		"handle":  func() error { _, err := other.Sandbox(ctx, sb.ID); return err },
		"timeout": func() error { return other.SetTimeout(ctx, sb.ID, time.Second) },
		"kill":    func() error { return other.Kill(ctx, sb.ID) },
	} {
		if err := try(); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	never := "i" + strings.Repeat("0", 20)
	for _, route := range [][2]string{
		{"GET", "/sandboxes/ID"}, {"DELETE", "/sandboxes/ID"}, {"POST", "/sandboxes/ID/timeout"}, {"POST", "/sandboxes/ID/refreshes"},
		{"POST", "/sandboxes/ID/connect"}, {"POST", "/v2/sandboxes/ID/connect"}, {"GET", "/sandboxes/ID/metrics"}, {"GET", "/sandboxes/ID/logs"},
		{"GET", "/v2/sandboxes/ID/logs"}, {"PUT", "/sandboxes/ID/network"}, {"GET", "/sandboxes/metrics?sandbox_ids=ID"},
	} {
		body := map[string]any{"timeout": 60}
		if strings.HasSuffix(route[1], "network") {
			body = map[string]any{"denyOut": []string{"1.1.1.1"}}
		}
		a := d.call(theirs.Key, route[0], strings.ReplaceAll(route[1], "ID", sb.ID), body)
		b := d.call(theirs.Key, route[0], strings.ReplaceAll(route[1], "ID", never), body)
		if a.Status != b.Status || strings.ReplaceAll(a.Body, sb.ID, never) != b.Body {
			t.Errorf("%s tells one that is not one's own (%s) from one that never was (%s)", route, a, b)
		}
		if strings.Contains(a.Body, "ours") || a.Status < 400 && strings.Contains(a.Body, sb.ID) {
			t.Errorf("%s: %s", route, a)
		}
	}
	for who, c := range map[string]struct {
		c    *client.Client
		want string
	}{"ours": {ours, sb.ID}, "theirs": {other, their.ID}} {
		for info, err := range c.c.List(ctx, client.Metadata(map[string]string{"a": "b"})) {
			if err != nil || info.ID != c.want {
				t.Errorf("%s: the list has %s (%v)", who, info.ID, err)
			}
		}
		for run, err := range c.c.Runs(ctx) {
			if err != nil || run.ID != c.want {
				t.Errorf("%s: the runs have %s (%v)", who, run.ID, err)
			}
		}
	}
	d.strangersAtTheEdge(t, sb.ID, their.ID, theirs.Key)
	if info, err := sb.Info(ctx); err != nil || time.Until(info.EndAt) < 4*time.Minute {
		t.Errorf("after all that: %+v %v", info, err)
	}
}

// strangersAtTheEdge tries their token and key on our sandbox.
func (d *daemon) strangersAtTheEdge(t *testing.T, ours, theirs, theirKey string) {
	t.Helper()
	a := d.call(theirKey, "GET", "/sandboxes/"+theirs, nil)
	var their created
	if err := a.decode(&their); err != nil || their.EnvdAccessToken == "" {
		t.Fatalf("%s %v", a, err)
	}
	for _, r := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/files?path=/etc/hostname", "", 401},
		{"POST", "/files?path=x", "x", 401},
		{"POST", "/process.Process/List", "{}", 401},
		{"POST", "/filesystem.Filesystem/ListDir", `{"path":"/"}`, 401},
	} {
		for name, way := range map[string]func(*http.Request){
			"their token":        as("E2b-Sandbox-Id", ours, "E2b-Sandbox-Port", "49983", "X-Access-Token", their.EnvdAccessToken),
			"their token, host":  as("Host", "49983-"+ours+"."+d.note().Domain, "X-Access-Token", their.EnvdAccessToken),
			"their key":          as("E2b-Sandbox-Id", ours, "E2b-Sandbox-Port", "49983", "X-API-Key", theirKey),
			"no token":           as("E2b-Sandbox-Id", ours, "E2b-Sandbox-Port", "49983"),
			"an empty token":     as("E2b-Sandbox-Id", ours, "E2b-Sandbox-Port", "49983", "X-Access-Token", ""),
			"a token of another": as("E2b-Sandbox-Id", ours, "E2b-Sandbox-Port", "49983", "X-Access-Token", strings.Replace(their.EnvdAccessToken, theirs, ours, 1)),
		} {
			a, err := d.ask(t.Context(), r.method, r.path, []byte(r.body), way, as("Content-Type", "application/json"))
			if err != nil || a.Status != r.want {
				t.Errorf("%s %s with %s: %s %v", r.method, r.path, name, a, err)
			}
		}
	}
	// Their token alone leads to their sandbox, whatever else is said.
	a, err := d.ask(t.Context(), "GET", "/files?path=/etc/hostname", nil, as("X-Access-Token", their.EnvdAccessToken))
	if err != nil || a.Status != 200 || strings.Contains(a.Body, ours) {
		t.Errorf("%s %v", a, err)
	}
	if a := d.preview(ours, 8000, "/"); a.Status != 403 {
		t.Errorf("a private port without a token: %s", a)
	}
}

func TestFault37_KeysTokensAndSignatures(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	key := d.newKey("default")
	c := d.clientOf(key.Key)
	sb := many(t, c, 1)[0]
	if err := sb.Files.WriteFile(t.Context(), "f", []byte("content")); err != nil {
		t.Fatal(err)
	}
	d.cli("key", "revoke", key.ID)
	for revoked := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		asked := time.Since(revoked)
		a := d.call(key.Key, "GET", "/v2/sandboxes", nil)
		if a.Status == 401 {
			t.Logf("the key was worthless %s after its revocation", asked.Round(time.Millisecond))
			break
		}
		if asked > time.Second {
			t.Errorf("a revoked key is good for a request of %s later: %s", asked, a)
			break
		}
	}
	if _, err := c.Create(t.Context()); !errors.Is(err, client.ErrUnauthenticated) {
		t.Errorf("a create with it: %v", err)
	}
	if _, err := sb.Run(t.Context(), "true"); err != nil {
		t.Errorf("what was made with it goes on: %v", err)
	}
	var keys []adminKey
	if err := json.Unmarshal([]byte(d.cli("key", "list", "--json")), &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.Key != "" || (k.ID == key.ID) != (k.RevokedAt != nil) {
			t.Errorf("key list: %+v", k)
		}
	}
	for _, bad := range []string{"", "x", "e2b_", "e2b_" + strings.Repeat("0", 40), key.Key[:len(key.Key)-1], key.Key + "0", strings.ToUpper(key.Key), "e2b_" + strings.Repeat("0", 100000)} {
		if a, err := d.ask(t.Context(), "GET", "/v2/sandboxes", nil, as("X-API-Key", bad)); err == nil && a.Status != 401 && a.Status != 431 {
			t.Errorf("the key %.50q: %s", bad, a)
		}
	}
	d.signatures(t, sb)

	token := d.accessToken(sb.ID)
	if err := d.client().Kill(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	for name, way := range map[string]func(*http.Request){
		"token": as("X-Access-Token", token),
		"host":  as("X-Access-Token", token, "Host", "49983-"+sb.ID+"."+d.note().Domain),
	} {
		a, err := d.ask(t.Context(), "GET", "/files?path=f", nil, way)
		if err != nil || a.Status != 502 || !strings.Contains(a.Body, `"message":"The sandbox was not found"`) || !strings.Contains(a.Body, sb.ID) {
			t.Errorf("the token of a dead sandbox by %s: %s %v", name, a, err)
		}
	}
}

// signatures tries signed URLs that somebody changed.
func (d *daemon) signatures(t *testing.T, sb *client.Sandbox) {
	t.Helper()
	get := func(method, address string) answer {
		t.Helper()
		a, err := d.ask(t.Context(), method, strings.TrimPrefix(address, d.note().APIURL), []byte("x"), as("Content-Type", "application/octet-stream"))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	good := sb.Files.DownloadURL("f", time.Minute)
	if a := get("GET", good); a.Status != 200 || a.Body != "content" {
		t.Fatalf("a signed URL: %s", a)
	}
	u, err := url.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(name, value string) string {
		q := u.Query()
		q.Set(name, value)
		if value == "" {
			q.Del(name)
		}
		v := *u
		v.RawQuery = q.Encode()
		return v.String()
	}
	sig := u.Query().Get("signature")
	for what, address := range map[string]string{
		"another path":      changed("path", "/etc/passwd"),
		"another user":      changed("username", "root"),
		"a later end":       changed("signature_expiration", "99999999999"),
		"no end":            changed("signature_expiration", ""),
		"another signature": changed("signature", sig[:len(sig)-2]+"AA"),
		"a shorter one":     changed("signature", sig[:10]),
		"no signature":      changed("signature", ""),
		"a negative end":    changed("signature_expiration", "-1"),
	} {
		// Without a signature nothing names a sandbox: the API has no such route.
		if a := get("GET", address); a.Status != 401 && !(what == "no signature" && a.Status == 404) {
			t.Errorf("%s: %s", what, a)
		}
	}
	if a := get("POST", good); a.Status != 401 {
		t.Errorf("a download's signature on an upload: %s", a)
	}
	short := sb.Files.DownloadURL("f", time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), slow(patience))
	defer cancel()
	for get("GET", short).Status != 401 {
		select {
		case <-ctx.Done():
			t.Error("an expired signature is good")
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}
