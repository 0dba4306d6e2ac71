package agent_test

import (
	"io"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestAnotherMachineEndsStreams: connections from before a restore end when the guest
// is introduced as another machine, the log forgets what a copy's origin did, and a
// process that somebody followed can be followed anew, by its pid. A sandbox that
// gets its standby keeps them.
func TestAnotherMachineEndsStreams(t *testing.T) {
	g := newGuest(t)
	before := g.initialised(t, "first")
	ps, err := before.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", "echo began; read x; echo got $x"}, Stdin: true})
	must(t, err)
	defer ps.Close()
	if ev, err := ps.Next(); err != nil || string(ev.Stdout) != "began\n" {
		t.Fatalf("%+v, %v", ev, err)
	}
	ended := make(chan error, 1)
	go func() { _, err := ps.Next(); ended <- err }()

	// The same machine, another sandbox: the stream goes on.
	must(t, g.client(t, "host", "").Init(t.Context(), nacre.AgentInit{HostToken: "host", AccessToken: "second"}))
	select {
	case err := <-ended:
		t.Fatalf("the stream ended with %v", err)
	case <-time.After(50 * time.Millisecond):
	}

	must(t, g.client(t, "host", "").Init(t.Context(), nacre.AgentInit{HostToken: "other", AccessToken: "third", NewIdentity: true}))
	select {
	case err := <-ended:
		if !nacre.IsCode(err, nacre.CodeUnavailable) {
			t.Errorf("the stream ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the stream goes on")
	}
	after := g.client(t, "other", "third")
	again, err := after.Processes().Connect(t.Context(), ps.PID())
	must(t, err)
	defer again.Close()
	must(t, after.Processes().Input(t.Context(), ps.PID(), []byte("it\n")))
	var out string
	for {
		ev, err := again.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		out += string(ev.Stdout)
	}
	if out != "got it\n" {
		t.Errorf("it printed %q", out)
	}
	var first nacre.LogEntry
	_ = after.Logs(t.Context(), 0, func(e nacre.LogEntry) error { first = e; return io.EOF })
	if first.Message != "got it" || first.Seq != 3 {
		t.Errorf("the log begins with %+v", first)
	}
}
