package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre/internal/clientfile"
)

// answer is what came back for a request, read to its end.
type answer struct {
	Status int
	Header http.Header
	Body   string
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.Status, strings.TrimSpace(a.Body)) }

// decode reads the body as JSON.
func (a answer) decode(v any) error {
	if err := json.Unmarshal([]byte(a.Body), v); err != nil {
		return fmt.Errorf("%w in %s", err, a)
	}
	return nil
}

// as gives a request its headers: pairs of a name and a value. "Host" is the
// host's name.
func as(pairs ...string) func(*http.Request) {
	return func(r *http.Request) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == "Host" {
				r.Host = pairs[i+1]
				continue
			}
			r.Header.Set(pairs[i], pairs[i+1])
		}
	}
}

// note is what the server left for the commands on its host: key and addresses.
func (d *daemon) note() clientfile.File {
	d.t.Helper()
	f, err := clientfile.Read(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	return f
}

// plain is a client that shares no connection and follows no redirect.
var plain = &http.Client{
	Timeout:       slow(time.Minute),
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask sends a request to the plain listener.
func (d *daemon) ask(ctx context.Context, method, path string, body []byte, shape ...func(*http.Request)) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, d.note().APIURL+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for _, f := range shape {
		f(req)
	}
	resp, err := plain.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return answer{resp.StatusCode, resp.Header, string(text)}, err
}

// call is ask with a key, for a test that expects an answer. A body is sent as JSON.
func (d *daemon) call(key, method, path string, body any) answer {
	d.t.Helper()
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			d.t.Fatal(err)
		}
	}
	a, err := d.ask(d.t.Context(), method, path, raw, as("X-API-Key", key, "Content-Type", "application/json"))
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// preview asks a port of a sandbox.
func (d *daemon) preview(id string, port int, path string, shape ...func(*http.Request)) answer {
	d.t.Helper()
	shape = append([]func(*http.Request){as("Host", strconv.Itoa(port)+"-"+id+"."+d.note().Domain)}, shape...)
	a, err := d.ask(d.t.Context(), http.MethodGet, path, nil, shape...)
	if err != nil {
		d.t.Fatalf("port %d of %s: %v", port, id, err)
	}
	return a
}

// created is what a create answers, as far as the SDK does not show it.
type created struct {
	SandboxID       string `json:"sandboxID"`
	EnvdAccessToken string `json:"envdAccessToken"`
}

// outcome is a line of the list of runs: how a sandbox ended.
type outcome struct {
	SandboxID string    `json:"sandboxID"`
	Status    string    `json:"status"`
	EndReason string    `json:"endReason"`
	Reason    string    `json:"reason"`
	Detail    string    `json:"detail"`
	EndedAt   time.Time `json:"endedAt"`
}

// outcome waits until a sandbox has ended and tells how. It waits no longer than it
// takes until ends are looked for that nobody told of.
func (d *daemon) outcome(id string) (o outcome) {
	d.t.Helper()
	d.eventually(30*time.Second, func() error {
		for path := "/v2/sandbox-runs"; path != ""; {
			a := d.call(d.note().APIKey, http.MethodGet, path, nil)
			var all []outcome
			if err := a.decode(&all); err != nil {
				return err
			}
			for _, o = range all {
				if o.SandboxID == id && o.Status == "stopped" && !o.EndedAt.IsZero() {
					return nil
				}
			}
			path = ""
			if next := a.Header.Get("X-Next-Token"); next != "" {
				path = "/v2/sandbox-runs?nextToken=" + next
			}
		}
		return fmt.Errorf("sandbox %s has not ended", id)
	})
	return o
}
