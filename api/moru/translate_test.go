package moru

import (
	"encoding/json"
	"net/url"
	"reflect"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// TestCreateRequest: bodies as the four clients send them.
func TestCreateRequest(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		want nacre.CreateRequest
	}{
		"moru python": {
			`{"templateID":"base","autoPause":false,"allow_internet_access":true,"envVars":{},"metadata":{},"secure":true,"timeout":300}`,
			nacre.CreateRequest{Template: "base", Timeout: 5 * time.Minute, Secure: true, Metadata: map[string]string{}, Env: map[string]string{}},
		},
		"moru js": {
			`{"autoPause":false,"templateID":"python","timeout":91,"secure":false,"envVars":{"A":"b"}}`,
			nacre.CreateRequest{Template: "python", Timeout: 91 * time.Second, Env: map[string]string{"A": "b"}},
		},
		"e2b v2: secure by default": {
			`{"templateID":"base"}`,
			nacre.CreateRequest{Template: "base", Secure: true},
		},
		"nulls are absent": {
			`{"templateID":"base","timeout":null,"secure":null,"network":null,"allow_internet_access":null,"iam":null,"autoResume":null,"mcp":null}`,
			nacre.CreateRequest{Template: "base", Secure: true},
		},
		"no internet": {
			`{"templateID":"base","allow_internet_access":false}`,
			nacre.CreateRequest{Template: "base", Secure: true, Network: nacre.NetworkPolicy{DenyInternet: true}},
		},
		"an allow list": {
			`{"templateID":"base","network":{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"],"allowPublicTraffic":false,"maskRequestHost":"custom-host.example.com:${PORT}"}}`,
			nacre.CreateRequest{Template: "base", Secure: true, Network: nacre.NetworkPolicy{
				AllowOut: []string{"1.1.1.1"}, DenyOut: []string{"0.0.0.0/0"},
				PrivateTraffic: true, MaskRequestHost: "custom-host.example.com:${PORT}",
			}},
		},
		"a float": {
			`{"templateID":"base","timeout":0.5}`,
			nacre.CreateRequest{Template: "base", Secure: true, Timeout: 500 * time.Millisecond},
		},
		"a runtime, for clients that have no field for it": {
			`{"templateID":"base","metadata":{"nacre:runtime":"firecracker","user":"7"}}`,
			nacre.CreateRequest{Template: "base", Secure: true, Runtime: nacre.RuntimeFirecracker, Metadata: map[string]string{"user": "7"}},
		},
		"auto-pause is the service's to refuse": {
			`{"templateID":"base","autoPause":true}`,
			nacre.CreateRequest{Template: "base", Secure: true, OnTimeout: nacre.TimeoutPause},
		},
	} {
		var in newSandbox
		if err := json.Unmarshal([]byte(c.body), &in); err != nil {
			t.Fatal(err)
		}
		got, err := createRequest(in)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v %v, want %+v", name, got, err, c.want)
		}
	}
}

// TestParseStates: commas from E2B and from JavaScript, repeats from Moru's Python.
func TestParseStates(t *testing.T) {
	both := []nacre.State{nacre.StateRunning, nacre.StatePausing, nacre.StatePaused, nacre.StateResuming}
	for query, want := range map[string][]nacre.State{
		"":                            both,
		"state=":                      both,
		"state=running,paused":        both,
		"state=running%2Cpaused":      both,
		"state=running&state=paused":  both,
		"state=running&state=running": both[:2],
		"state=paused":                both[2:],
	} {
		q, _ := url.ParseQuery(query)
		got, err := parseStates("state", q["state"], []string{"running", "paused"})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v %v, want %v", query, got, err, want)
		}
	}
}

// TestDecodeMetadata: the values after the query's own decoding.
func TestDecodeMetadata(t *testing.T) {
	for in, want := range map[string]map[string]string{
		"":                                     nil,
		"a=b":                                  {"a": "b"},
		"a%2520b=c%2526d%253D%25C3%25A9%252B1": {"a b": "c&d=é+1"},
		"a=":                                   {"a": ""},
		"a=1&b=2":                              {"a": "1", "b": "2"},
	} {
		got, err := decodeMetadata(in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"%zz=1", "a=%25zz", "a;b=1"} {
		if _, err := decodeMetadata(in); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestUnixParam: one client sends milliseconds where seconds are asked for.
func TestUnixParam(t *testing.T) {
	at := time.Unix(1795343400, 0)
	for in, want := range map[string]time.Time{"": {}, "1795343400": at, "1795343400000": at, "0": time.Unix(0, 0)} {
		got, err := unixParam(url.Values{"start": {in}}, "start")
		if err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"-1", "x", "1.5", "99999999999999999"} {
		if _, err := unixParam(url.Values{"start": {in}}, "start"); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestLogQuery: the wire's cursor includes its millisecond, the domain's does not.
func TestLogQuery(t *testing.T) {
	at := time.UnixMilli(1795343400123)
	for query, want := range map[string]nacre.LogQuery{
		"":                             {Limit: 100},
		"limit=0":                      {Limit: 0},
		"cursor=1795343400123&limit=7": {Limit: 7, After: at.Add(-1)},
		"start=1795343400123":          {Limit: 100, After: at.Add(-1)},
		"cursor=1795343400123&direction=backward": {Limit: 100, After: at.Add(time.Millisecond), Backward: true},
		"eventType=stderr":                        {Limit: 100, Type: nacre.LogStderr},
		"level=error":                             {Limit: 100, Type: nacre.LogStderr},
		"level=info":                              {Limit: 100},
	} {
		q, _ := url.ParseQuery(query)
		got, err := logQuery(q, 100)
		if err != nil || !got.After.Equal(want.After) || got.Limit != want.Limit || got.Backward != want.Backward || got.Type != want.Type {
			t.Errorf("%q: %+v %v, want %+v", query, got, err, want)
		}
	}
	for _, query := range []string{"limit=-1", "direction=up", "eventType=x", "level=x", "cursor=-1", "search=x"} {
		q, _ := url.ParseQuery(query)
		if _, err := logQuery(q, 100); err == nil {
			t.Errorf("%q was accepted", query)
		}
	}
}

// TestRunReasons: each reason of the domain has a word of Moru's.
func TestRunReasons(t *testing.T) {
	for _, r := range []nacre.EndReason{
		nacre.EndKilled, nacre.EndTimeout, nacre.EndIdle, nacre.EndOOM, nacre.EndCrash, nacre.EndFailed, nacre.EndNodeLost,
	} {
		if got := run(nacre.Sandbox{State: nacre.StateEnded, EndReason: r}); got.EndReason == "" || got.Status != "stopped" {
			t.Errorf("%s: %+v", r, got)
		}
	}
	if got := run(nacre.Sandbox{State: nacre.StatePausing}); got.Status != "running" || got.EndReason != "" {
		t.Errorf("pausing: %+v", got)
	}
}

func FuzzCreate(f *testing.F) {
	f.Add([]byte(`{"templateID":"base","timeout":300,"network":{"allowOut":["1.1.1.1"],"maskRequestHost":"x:${PORT}"}}`))
	f.Add([]byte(`{"timeout":1e18,"secure":false}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var in newSandbox
		err := api.DecodeJSON(body, &in)
		var out nacre.CreateRequest
		if err == nil {
			out, err = createRequest(in)
		}
		if err != nil {
			if c := nacre.ErrorCode(err); c != nacre.CodeInvalid && c != nacre.CodeUnsupported {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		if out.Timeout < 0 || out.Network.PrivateTraffic && !out.Secure {
			t.Fatalf("%q became %+v", body, out)
		}
	})
}

func FuzzListQuery(f *testing.F) {
	f.Add("metadata=a%252520b%3Dc&state=running%2Cpaused&limit=100&nextToken=x&startedAfter=2026-11-22T10:00:00Z")
	f.Fuzz(func(t *testing.T, query string) {
		q, _ := url.ParseQuery(query)
		out, err := parseSandboxQuery(q, "state", "running", "paused")
		if err == nil && (out.filter.Limit < 1 || out.filter.Limit > 100 || len(out.filter.States) == 0 || out.filter.AllTeams) {
			t.Fatalf("%q became %+v", query, out)
		}
		_, _ = logQuery(q, 100)
		_, _ = unixParam(q, "start")
	})
}

// FuzzMetadata: what a client encodes comes back.
func FuzzMetadata(f *testing.F) {
	f.Add("a b", "c&d=é+1")
	f.Fuzz(func(t *testing.T, k, v string) {
		in := url.Values{url.QueryEscape(k): {url.QueryEscape(v)}}.Encode()
		got, err := decodeMetadata(in)
		if err != nil || got[k] != v {
			t.Fatalf("%q=%q came back as %q %v", k, v, got, err)
		}
		_, _ = decodeMetadata(v)
	})
}
