package miosa

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		body  string
		want  nacre.Resources
		field string // of the error
	}{
		{`{}`, nacre.Resources{CPUs: 1, MemoryMiB: 1024, DiskMiB: 3072}, ""},
		{`{"size":"xs"}`, nacre.Resources{CPUs: 1, MemoryMiB: 2048, DiskMiB: 10240}, ""},
		{`{"size":"small"}`, nacre.Resources{CPUs: 2, MemoryMiB: 4096, DiskMiB: 10240}, ""},
		{`{"size":"medium"}`, nacre.Resources{CPUs: 4, MemoryMiB: 8192, DiskMiB: 10240}, ""},
		{`{"size":"large"}`, nacre.Resources{}, "size"},
		{`{"size":"xs","disk_size_mb":500}`, nacre.Resources{CPUs: 1, MemoryMiB: 2048, DiskMiB: 500}, ""},
		{`{"disk_mb":500}`, nacre.Resources{CPUs: 1, MemoryMiB: 1024, DiskMiB: 500}, ""},
		{`{"disk_mb":10241}`, nacre.Resources{}, "disk_mb"},
		{`{"cpu_count":8,"memory_mb":8192,"disk_size_mb":10240}`, nacre.Resources{CPUs: 8, MemoryMiB: 8192, DiskMiB: 10240}, ""},
		{`{"cpu_count":1,"memory_mb":1,"disk_size_mb":1}`, nacre.Resources{CPUs: 1, MemoryMiB: leastMemoryMB, DiskMiB: leastDiskMB}, ""},
		{`{"cpu_count":0}`, nacre.Resources{}, "cpu_count"},
		{`{"memory_mb":8193}`, nacre.Resources{}, "memory_mb"},
	} {
		var in newSandbox
		decode(t, c.body, &in)
		req, err := createRequest(in)
		if nacre.ErrorField(err) != c.field || c.field == "" && req.Resources != c.want {
			t.Errorf("%s: %+v %v", c.body, req.Resources, err)
		}
	}
}

// TestRuntime: a create's metadata may ask for a runtime, which is no metadata then.
func TestRuntime(t *testing.T) {
	for body, want := range map[string]nacre.RuntimeName{
		`{"metadata":{"nacre:runtime":"firecracker","user":"7"}}`: "firecracker",
		`{"metadata":{"user":"7"}}`:                               "",
		`{}`:                                                      "",
	} {
		var in newSandbox
		if err := json.Unmarshal([]byte(body), &in); err != nil {
			t.Fatal(err)
		}
		got, err := createRequest(in)
		if err != nil || got.Runtime != want || got.Metadata[nacre.LabelRuntime] != "" || len(in.Metadata) > 0 && got.Metadata["user"] != "7" {
			t.Errorf("%s: %+v, %v", body, got, err)
		}
	}
	for _, bad := range []string{`{"metadata":{"nacre:runtime":7}}`, `{"metadata":{"nacre:other":"x"}}`} {
		var in newSandbox
		if err := json.Unmarshal([]byte(bad), &in); err != nil {
			t.Fatal(err)
		}
		if _, err := createRequest(in); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestStates(t *testing.T) {
	for _, c := range []struct {
		state  nacre.State
		reason nacre.EndReason
		want   string
	}{
		{nacre.StateCreating, "", "provisioning"}, {nacre.StateRunning, "", "running"}, {nacre.StatePausing, "", "running"},
		{nacre.StatePaused, "", "paused"}, {nacre.StateResuming, "", "paused"}, {nacre.StateStopping, nacre.EndKilled, "destroyed"},
		{nacre.StateEnded, nacre.EndKilled, "destroyed"}, {nacre.StateEnded, nacre.EndTimeout, "destroyed"}, {nacre.StateEnded, nacre.EndIdle, "destroyed"},
		{nacre.StateEnded, nacre.EndFailed, "error"}, {nacre.StateEnded, nacre.EndCrash, "error"}, {nacre.StateEnded, nacre.EndOOM, "error"}, {nacre.StateEnded, nacre.EndNodeLost, "error"},
	} {
		s := nacre.Sandbox{State: c.state, EndReason: c.reason, Detail: "why", CreatedAt: time.Now()}
		if got := stateOf(s); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.state, c.reason, got, c.want)
		}
		o := (&API{Config: Config{Clock: time.Now}}).sandbox(s)
		var last string
		_ = json.Unmarshal(o.Metadata["last_error"], &last)
		if (last != "") != (c.want == "error") {
			t.Errorf("%s: last_error %q", c.want, last)
		}
	}
}

func TestExpirations(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	for body, want := range map[string]time.Duration{
		`{}`: 0, `{"keep":true,"retention_seconds":5}`: 0, `{"retention_seconds":5}`: 5 * time.Second, `{"expiration_seconds":6}`: 6 * time.Second,
		`{"expiration_days":2}`: 48 * time.Hour, `{"expiration":"7d"}`: 7 * 24 * time.Hour, `{"expiration":90}`: 90 * time.Second,
		`{"expiration":"12h"}`: 12 * time.Hour, `{"expiration":"2026-11-22T01:00:00Z"}`: time.Hour,
		`{"expiration":"2026-11-21T00:00:00Z"}`: -1, `{"expiration":"soon"}`: -1, `{"retention_seconds":0}`: -1, `{"expiration":{}}`: -1,
	} {
		var in newSnapshot
		decode(t, body, &in)
		got, err := in.request(now)
		if (want < 0) != (err != nil) || err == nil && got.Keep != want {
			t.Errorf("%s: %v %v", body, got.Keep, err)
		}
	}
}

// TestBuildSpecProblems: each problem is named by its field, all at once.
func TestBuildSpecProblems(t *testing.T) {
	good := `{"from":"miosa-sandbox","size":"xs","vcpu":2,"memoryMib":512,"diskMib":1024,"steps":[{"run":"apt-get update"}],"env":{"A":"b"},"workdir":"/w","user":"sandbox","startCmd":"x","readyCmd":"y","previewPort":3000,"artifactPaths":["/w"]}`
	if got := checkSpec(json.RawMessage(good)); len(got) != 0 {
		t.Errorf("a good one: %v", got)
	}
	bad := `{"size":"huge","vcpu":9,"memoryMib":"x","diskMib":0,"steps":[{"run":""},{"copy":"x"},7],"env":{"1A":"b","B":2},"workdir":"w","user":"","startCmd":1,"previewPort":0,"artifactPaths":["w"],"color":"red"}`
	var fields []string
	for _, p := range checkSpec(json.RawMessage(bad)) {
		fields = append(fields, p.Field)
		if p.Code == "" || p.Message == "" {
			t.Errorf("%+v", p)
		}
	}
	want := []string{"color", "from", "size", "vcpu", "memoryMib", "diskMib", "previewPort", "steps[0].run", "steps[1]", "steps[2]", "env.1A", "env.B", "workdir", "user", "startCmd", "artifactPaths[0]"}
	if !reflect.DeepEqual(fields, want) {
		t.Errorf("got %v\nwant %v", fields, want)
	}
	for _, odd := range []string{"null", "[]", "7", `"x"`} {
		if len(checkSpec(json.RawMessage(odd))) != 1 {
			t.Errorf("%s", odd)
		}
	}
}

// FuzzMetadata: whatever JSON a user keeps with a sandbox comes back as it was, and
// nothing reserved comes in.
func FuzzMetadata(f *testing.F) {
	f.Add(`{"a":"b","n":1,"deep":{"x":[null,true]}}`)
	f.Add(`{"nacre:x":"y"}`)
	f.Fuzz(func(t *testing.T, text string) {
		var user map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &user) != nil {
			return
		}
		meta := map[string]string{nacre.LabelSlug: "s"}
		err := addMetadata(meta, user)
		var e *nacre.Error
		if err != nil {
			if !errors.As(err, &e) || e.Field != "metadata" {
				t.Fatal(err)
			}
			return
		}
		if meta[nacre.LabelSlug] != "s" {
			t.Fatal("what is reserved was changed")
		}
		got := userMetadata(meta)
		if len(got) != len(user) {
			t.Fatalf("%d of %d keys", len(got), len(user))
		}
		for k, v := range user {
			var a, b any
			if json.Unmarshal(v, &a) != nil || json.Unmarshal(got[k], &b) != nil || !reflect.DeepEqual(a, b) {
				t.Fatalf("%q: %s became %s", k, v, got[k])
			}
		}
	})
}

func FuzzFileMode(f *testing.F) {
	f.Add("0644")
	f.Add("u+x,go-w")
	f.Add("--reference=/etc/shadow")
	f.Fuzz(func(t *testing.T, text string) {
		mode, err := fileMode(text, true)
		if err == nil && (mode == "" || mode[0] == '-' && len(mode) > 1 && mode[1] == '-') {
			t.Fatalf("%q gives chmod %q", text, mode)
		}
	})
}
