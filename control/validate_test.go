package control_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestCreateNamesTheBadField: a bad request is refused before anything is made.
func TestCreateNamesTheBadField(t *testing.T) {
	w := newWorld(t)
	w.start()
	many := map[string]string{}
	for i := range 200 {
		many[fmt.Sprint(i)] = ""
	}
	long := strings.Repeat("x", 300<<10)
	for _, c := range []struct {
		name  string
		r     nacre.CreateRequest
		code  nacre.Code
		field string
		says  string
	}{
		{"timeout negative", nacre.CreateRequest{Timeout: -time.Second}, nacre.CodeInvalid, "Timeout", "greater than 0"},
		{"timeout too long", nacre.CreateRequest{Timeout: 24*time.Hour + time.Second}, nacre.CodeInvalid, "Timeout", "Timeout cannot be greater than 24 hours"},
		{"woken, but without its memory", nacre.CreateRequest{AutoResume: true, FilesOnly: true}, nacre.CodeInvalid, "AutoResume", "not both"},
		{"idle for ever", nacre.CreateRequest{IdleTimeout: 25 * time.Hour}, nacre.CodeInvalid, "IdleTimeout", "24h"},
		{"idle before it began", nacre.CreateRequest{IdleTimeout: -1}, nacre.CodeInvalid, "IdleTimeout", "between"},
		{"name", nacre.CreateRequest{Name: "a\nb"}, nacre.CodeInvalid, "Name", "printed"},
		{"action", nacre.CreateRequest{OnTimeout: "explode"}, nacre.CodeInvalid, "OnTimeout", ""},
		{"template", nacre.CreateRequest{Template: "x"}, nacre.CodeNotFound, "Template", "template 'x' not found"},
		{"template with a line break", nacre.CreateRequest{Template: "x\r\nInjected: y"}, nacre.CodeInvalid, "Template", ""},
		{"metadata count", nacre.CreateRequest{Metadata: many}, nacre.CodeInvalid, "Metadata", "200"},
		{"metadata key", nacre.CreateRequest{Metadata: map[string]string{"": "x"}}, nacre.CodeInvalid, "Metadata", ""},
		{"metadata NUL", nacre.CreateRequest{Metadata: map[string]string{"a": "x\x00"}}, nacre.CodeInvalid, "Metadata", "NUL"},
		{"metadata UTF-8", nacre.CreateRequest{Metadata: map[string]string{"a": "\xff"}}, nacre.CodeInvalid, "Metadata", "UTF-8"},
		{"metadata value", nacre.CreateRequest{Metadata: map[string]string{"a": long}}, nacre.CodeInvalid, "Metadata", "longer"},
		{"env name", nacre.CreateRequest{Env: map[string]string{"A=B": "x"}}, nacre.CodeInvalid, "Env", "A=B"},
		{"env NUL", nacre.CreateRequest{Env: map[string]string{"A": "secret\x00"}}, nacre.CodeInvalid, "Env", "NUL"},
		{"env value", nacre.CreateRequest{Env: map[string]string{"A": long}}, nacre.CodeInvalid, "Env", "longer"},
		{"allow a domain", nacre.CreateRequest{Network: nacre.NetworkPolicy{DenyInternet: true, AllowOut: []string{"example.com"}}}, nacre.CodeInvalid, "AllowOut", "domain name"},
		{"deny a domain", nacre.CreateRequest{Network: nacre.NetworkPolicy{DenyOut: []string{"*.example.com"}}}, nacre.CodeInvalid, "DenyOut", "domain name"},
		{"deny a zone", nacre.CreateRequest{Network: nacre.NetworkPolicy{DenyOut: []string{"fe80::1%eth0"}}}, nacre.CodeInvalid, "DenyOut", ""},
		{"allow IPv6", nacre.CreateRequest{Network: nacre.NetworkPolicy{AllowOut: []string{"2001:db8::/32"}}}, nacre.CodeInvalid, "AllowOut", "IPv6"},
		{"host mask", nacre.CreateRequest{Network: nacre.NetworkPolicy{MaskRequestHost: "a\r\nb"}}, nacre.CodeInvalid, "MaskRequestHost", ""},
		{"processors", nacre.CreateRequest{Resources: nacre.Resources{CPUs: 1000}}, nacre.CodeInvalid, "Resources.CPUs", "between 1 and 32"},
		{"memory", nacre.CreateRequest{Resources: nacre.Resources{MemoryMiB: 1}}, nacre.CodeInvalid, "Resources.MemoryMiB", ""},
		{"disk", nacre.CreateRequest{Resources: nacre.Resources{DiskMiB: -1}}, nacre.CodeInvalid, "Resources.DiskMiB", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := w.svc.Create(t.Context(), team, c.r)
			if nacre.ErrorCode(err) != c.code || nacre.ErrorField(err) != c.field || !strings.Contains(nacre.ErrorMessage(err), c.says) {
				t.Fatalf("got %v (field %q)", err, nacre.ErrorField(err))
			}
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Fatal("the message holds a secret")
			}
		})
	}
	if p, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{}); err != nil || len(p.Sandboxes) != 0 {
		t.Fatalf("bad requests left records: %+v, %v", p, err)
	}
	good := nacre.NetworkPolicy{DenyOut: []string{"0.0.0.0/0", "::/0"}, AllowOut: []string{"1.1.1.1", "10.1.2.3/8", "::ffff:192.0.2.1"}, MaskRequestHost: "localhost:${PORT}"}
	s := w.create(nacre.CreateRequest{Network: good, Timeout: 24 * time.Hour})
	p, _ := w.host.Policy(s.Machine)
	if got := fmt.Sprint(p.Allow, p.Deny); got != "[1.1.1.1/32 10.0.0.0/8 192.0.2.1/32] [0.0.0.0/0 ::/0]" {
		t.Fatalf("in force: %s", got)
	}
	if r := s.Resources; r.CPUs != 1 || r.MemoryMiB != 64 || r.DiskMiB != 10<<10 || r.MaxPIDs != 4096 {
		t.Fatalf("resources: %+v", r) // the template's, then the server's
	}
}

// TestFault28_Timeouts: zero, negative, beyond the limit, and seconds taken for
// milliseconds.
func TestFault28_Timeouts(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Timeout: time.Hour})
	for _, d := range []time.Duration{0, -time.Second, 24*time.Hour + 1, 300_000 * time.Second} {
		_, err := w.svc.SetDeadline(t.Context(), team, s.ID, d, false)
		wantCode(t, err, nacre.CodeInvalid)
		if nacre.ErrorField(err) != "Timeout" {
			t.Fatalf("field %q", nacre.ErrorField(err))
		}
	}
	if got := w.get(s.ID).Deadline; !got.Equal(s.Deadline) {
		t.Fatal("a refused deadline moved the old one")
	}
	got, err := w.svc.SetDeadline(t.Context(), team, s.ID, time.Minute, true)
	if err != nil || got.Deadline != w.get(s.ID).Deadline || !got.Deadline.Equal(s.Deadline) {
		t.Fatalf("an extension that shortens: %s, want %s, %v", got.Deadline, s.Deadline, err)
	}
	got, err = w.svc.SetDeadline(t.Context(), team, s.ID, 2*time.Hour, true)
	if err != nil || !got.Deadline.After(s.Deadline) {
		t.Fatalf("an extension: %s, %v", got.Deadline, err)
	}
	got, err = w.svc.SetDeadline(t.Context(), team, s.ID, time.Minute, false)
	if err != nil || !got.Deadline.Before(s.Deadline) {
		t.Fatalf("a shortening: %s, %v", got.Deadline, err)
	}
	if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.svc.SetDeadline(t.Context(), team, s.ID, time.Minute, false)
	wantCode(t, err, nacre.CodeNotFound)
}

// TestFault30_Identifiers: made-up ids are unknown, and are not repeated.
func TestFault30_Identifiers(t *testing.T) {
	w := newWorld(t)
	w.start()
	for _, id := range []nacre.SandboxID{"", "..", "../../etc/passwd", "i' OR 1=1 --00000000", "i\r\nSet-Cookie: x=y12", "iÄÖÜ00000000000000", "i$(reboot)0000000000"} {
		_, err := w.svc.Get(t.Context(), team, id)
		wantCode(t, err, nacre.CodeNotFound)
		if id != "" && strings.Contains(err.Error(), string(id)) {
			t.Errorf("%q is repeated in %q", id, err)
		}
		wantCode(t, w.svc.Kill(t.Context(), team, id), nacre.CodeNotFound)
		_, err = w.svc.SetDeadline(t.Context(), team, id, time.Minute, false)
		wantCode(t, err, nacre.CodeNotFound)
		wantCode(t, w.svc.SetNetwork(t.Context(), team, id, nacre.NetworkPolicy{}), nacre.CodeNotFound)
		_, err = w.svc.Metrics(t.Context(), team, id, time.Time{}, time.Time{})
		wantCode(t, err, nacre.CodeNotFound)
		_, err = w.svc.Logs(t.Context(), team, id, nacre.LogQuery{})
		wantCode(t, err, nacre.CodeNotFound)
	}
}

// TestOfAnotherTeam: every call answers as if the sandbox had never been.
func TestOfAnotherTeam(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	for _, who := range []nacre.TeamID{other, ""} {
		for name, call := range map[string]func() error{
			"get":      func() error { _, err := w.svc.Get(t.Context(), who, s.ID); return err },
			"kill":     func() error { return w.svc.Kill(t.Context(), who, s.ID) },
			"deadline": func() error { _, err := w.svc.SetDeadline(t.Context(), who, s.ID, time.Minute, false); return err },
			"network":  func() error { return w.svc.SetNetwork(t.Context(), who, s.ID, nacre.NetworkPolicy{DenyInternet: true}) },
			"metrics":  func() error { _, err := w.svc.Metrics(t.Context(), who, s.ID, time.Time{}, time.Time{}); return err },
			"logs":     func() error { _, err := w.svc.Logs(t.Context(), who, s.ID, nacre.LogQuery{}); return err },
		} {
			if err := call(); !nacre.IsCode(err, nacre.CodeNotFound) {
				t.Errorf("%s by team %q: %v", name, who, err)
			}
		}
	}
	if p, err := w.svc.List(t.Context(), other, nacre.SandboxFilter{TeamID: team, AllTeams: true}); err != nil || len(p.Sandboxes) != 0 {
		t.Fatalf("another team lists %+v, %v", p, err)
	}
	if got := w.get(s.ID); got.State != nacre.StateRunning {
		t.Fatalf("state %s", got.State)
	}
	if p, _ := w.host.Policy(s.Machine); p.DenyAll {
		t.Fatal("another team changed the policy")
	}
}

func wantCode(t *testing.T, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Fatalf("got %v, want code %q", err, code)
	}
}
