package nacretest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// NodeUnderTest is a host for TestNode. Spec, Node, Traffic and Telemetry are
// required; a case that needs a missing helper is skipped and says so.
type NodeUnderTest struct {
	Node      nacre.Node
	Traffic   nacre.Traffic
	Telemetry nacre.Telemetry

	// Spec returns a start that works, with a fresh sandbox id.
	Spec func() nacre.StartSpec
	// Crash ends a machine as if by itself.
	Crash func(nacre.MachineID)
	// Serve answers every connection to a TCP port of the guest with "hello".
	Serve func(t *testing.T, id nacre.SandboxID, port int)
	// Restart ends the daemon and brings up another over what it left.
	Restart func(t *testing.T) NodeUnderTest
	// Leaks describes what no running sandbox accounts for.
	Leaks func() []string
}

type nodeCase struct {
	name string
	fn   func(*testing.T, NodeUnderTest)
}

// TestNode is the contract of nacre.Node, Traffic and Telemetry.
func TestNode(t *testing.T, make func(t *testing.T) NodeUnderTest) {
	cases := []nodeCase{
		{"a started sandbox runs commands with its environment", nodeRuns},
		{"start twice is a conflict", nodeStartTwice},
		{"an unknown build is not found and leaves nothing", nodeUnknownBuild},
		{"stop leaves nothing, and may be repeated", nodeStop},
		{"what has no machine is not found", nodeNotFound},
		{"two sandboxes share no token, hostname or environment", nodeApart},
		{"dial reaches a port; nobody listening is unavailable", nodeDial},
		{"egress is replaced, and a bad list is refused", nodeEgress},
		{"an exit is told once, with its reason, and kept until stop", nodeExit},
		{"exits before the watch are told too", nodeExitBefore},
		{"logs show what ran, also after stop", nodeLogs},
		{"a stop calls off a start", nodeStopDuringStart},
		{"machines outlive the daemon", nodeRestart},
		{"an exit while the daemon is down is found", nodeExitWhileDown},
		{"capacity counts", nodeCapacity},
	}
	for _, c := range append(cases, nodeSnapshotCases()...) {
		t.Run(c.name, func(t *testing.T) { c.fn(t, make(t)) })
	}
}

func (n NodeUnderTest) start(t *testing.T) (nacre.StartSpec, nacre.Started) {
	t.Helper()
	spec := n.Spec()
	st, err := n.Node.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	return spec, st
}

func (n NodeUnderTest) stop(t *testing.T, id nacre.SandboxID) {
	t.Helper()
	if err := n.Node.Stop(context.Background(), id); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func (n NodeUnderTest) run(t *testing.T, id nacre.SandboxID, script string) string {
	t.Helper()
	agent, err := n.Traffic.Agent(t.Context(), id)
	if err != nil {
		t.Fatalf("agent: %v", err)
	}
	out, err := output(t.Context(), agent, script)
	if err != nil {
		t.Fatalf("run %q: %v", script, err)
	}
	return out
}

// output runs a script and returns its standard output.
func output(ctx context.Context, agent nacre.Agent, script string) (string, error) {
	ps, err := agent.Processes().Start(ctx, nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", script}})
	if err != nil {
		return "", err
	}
	defer ps.Close()
	var out bytes.Buffer
	for {
		ev, err := ps.Next()
		if errors.Is(err, io.EOF) {
			return out.String(), nil
		}
		if err != nil {
			return "", err
		}
		out.Write(ev.Stdout)
	}
}

func nodeWantCode(t *testing.T, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Fatalf("got %v, want code %q", err, code)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func nodeRuns(t *testing.T, n NodeUnderTest) {
	spec := n.Spec()
	spec.Env = map[string]string{"NACRE_TEST": "forty-two"}
	spec.Secure = true
	st, err := n.Node.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer n.stop(t, spec.Sandbox)
	if !st.Machine.Valid() || st.BootPath == "" || st.BootTime <= 0 {
		t.Fatalf("started: %+v", st)
	}
	if got := n.run(t, spec.Sandbox, "echo $NACRE_TEST"); got != "forty-two\n" {
		t.Fatalf("the command said %q", got)
	}
	r, ok := n.Traffic.Route(spec.Sandbox)
	if !ok || r.Sandbox != spec.Sandbox || r.Team != spec.Team || !r.Secure {
		t.Fatalf("route: %+v, %v", r, ok)
	}
	found := 0
	n.Traffic.Routes(func(r nacre.Route) bool {
		if r.Sandbox == spec.Sandbox {
			found++
		}
		return true
	})
	if found != 1 {
		t.Fatalf("%d routes", found)
	}
	list, err := n.Node.Machines(t.Context())
	if err != nil || len(list) != 1 || list[0].Sandbox != spec.Sandbox || list[0].Machine != st.Machine || list[0].Exit != nil || list[0].Team != spec.Team {
		t.Fatalf("machines: %+v, %v", list, err)
	}
}

func nodeStartTwice(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	defer n.stop(t, spec.Sandbox)
	_, err := n.Node.Start(t.Context(), spec)
	nodeWantCode(t, err, nacre.CodeConflict)
	n.run(t, spec.Sandbox, "echo still here")
}

func nodeUnknownBuild(t *testing.T, n NodeUnderTest) {
	spec := n.Spec()
	spec.Build = nacre.NewBuildID()
	_, err := n.Node.Start(t.Context(), spec)
	nodeWantCode(t, err, nacre.CodeNotFound)
	n.noLeaks(t)
}

func (n NodeUnderTest) noLeaks(t *testing.T) {
	t.Helper()
	if n.Leaks == nil {
		return
	}
	if l := n.Leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
}

func nodeStop(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	var wg sync.WaitGroup
	for range 3 { // side by side
		wg.Go(func() { n.stop(t, spec.Sandbox) })
	}
	wg.Wait()
	n.stop(t, spec.Sandbox)
	if _, ok := n.Traffic.Route(spec.Sandbox); ok {
		t.Fatal("there is still a route")
	}
	if list, err := n.Node.Machines(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("machines: %v, %v", list, err)
	}
	n.noLeaks(t)
}

func nodeNotFound(t *testing.T, n NodeUnderTest) {
	id := nacre.NewSandboxID()
	nodeWantCode(t, n.Node.SetEgress(t.Context(), id, nacre.EgressPolicy{}), nacre.CodeNotFound)
	_, err := n.Traffic.Dial(t.Context(), id, 80)
	nodeWantCode(t, err, nacre.CodeNotFound)
	_, err = n.Traffic.Agent(t.Context(), id)
	nodeWantCode(t, err, nacre.CodeNotFound)
	if err := n.Node.Stop(t.Context(), id); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if l, err := n.Telemetry.Logs(t.Context(), id, nacre.LogQuery{}); err != nil || len(l) != 0 {
		t.Fatalf("logs: %v, %v", l, err)
	}
	if l, err := n.Telemetry.Logs(t.Context(), "../../etc/passwd", nacre.LogQuery{}); err != nil || len(l) != 0 {
		t.Fatalf("logs: %v, %v", l, err)
	}
	if m, err := n.Telemetry.Metrics(t.Context(), id, time.Time{}, time.Time{}); err != nil || len(m) != 0 {
		t.Fatalf("metrics: %v, %v", m, err)
	}
}

func nodeApart(t *testing.T, n NodeUnderTest) {
	a, b := n.Spec(), n.Spec()
	a.Env, a.Secure, b.Secure = map[string]string{"ONLY_A": "yes"}, true, true
	for _, s := range []nacre.StartSpec{a, b} {
		if _, err := n.Node.Start(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		defer n.stop(t, s.Sandbox)
	}
	if got := n.run(t, a.Sandbox, "echo x$ONLY_A"); got != "xyes\n" {
		t.Fatalf("a said %q", got)
	}
	if got := n.run(t, b.Sandbox, "echo x$ONLY_A"); got != "x\n" {
		t.Fatalf("b said %q", got)
	}
}

func nodeDial(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	defer n.stop(t, spec.Sandbox)
	_, err := n.Traffic.Dial(t.Context(), spec.Sandbox, 8099)
	nodeWantCode(t, err, nacre.CodeUnavailable)
	_, err = n.Traffic.Dial(t.Context(), spec.Sandbox, 0)
	nodeWantCode(t, err, nacre.CodeInvalid)
	if n.Serve == nil {
		t.Skip("no Serve: whether a port is reached was not tried")
	}
	n.Serve(t, spec.Sandbox, 8099)
	var got []byte
	eventually(t, "the port answers", func() bool {
		c, err := n.Traffic.Dial(t.Context(), spec.Sandbox, 8099)
		if err != nil {
			return false
		}
		defer c.Close()
		got = make([]byte, 5)
		_, err = io.ReadFull(c, got)
		return err == nil
	})
	if string(got) != "hello" {
		t.Fatalf("read %q", got)
	}
}

func nodeEgress(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	defer n.stop(t, spec.Sandbox)
	p := nacre.EgressPolicy{DenyAll: true, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	if err := n.Node.SetEgress(t.Context(), spec.Sandbox, p); err != nil {
		t.Fatal(err)
	}
	bad := n.Spec()
	bad.Network.AllowOut = []string{"nonsense"}
	_, err := n.Node.Start(t.Context(), bad)
	nodeWantCode(t, err, nacre.CodeInvalid)
}

func nodeLogs(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	n.run(t, spec.Sandbox, "echo first")
	n.run(t, spec.Sandbox, "echo second")
	n.stop(t, spec.Sandbox)
	logs := func(q nacre.LogQuery) []nacre.LogEntry {
		t.Helper()
		l, err := n.Telemetry.Logs(t.Context(), spec.Sandbox, q)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	out := logs(nacre.LogQuery{Type: nacre.LogStdout})
	if len(out) != 2 || strings.TrimSpace(out[0].Message) != "first" || strings.TrimSpace(out[1].Message) != "second" {
		t.Fatalf("stdout: %+v", out)
	}
	if !out[1].Time.After(out[0].Time) {
		t.Fatalf("times do not grow: %+v", out)
	}
	if l := logs(nacre.LogQuery{Type: nacre.LogStdout, Backward: true, Limit: 1}); len(l) != 1 || l[0].Seq != out[1].Seq {
		t.Fatalf("newest: %+v", l)
	}
	if l := logs(nacre.LogQuery{Type: nacre.LogStdout, After: out[0].Time}); len(l) != 1 || l[0].Seq != out[1].Seq {
		t.Fatalf("after the first: %+v", l)
	}
	if l := logs(nacre.LogQuery{Type: nacre.LogStdout, After: out[1].Time, Backward: true}); len(l) != 1 || l[0].Seq != out[0].Seq {
		t.Fatalf("before the second: %+v", l)
	}
	all := logs(nacre.LogQuery{})
	kinds := map[nacre.LogType]int{}
	for i, e := range all {
		kinds[e.Type]++
		if i > 0 && e.Seq <= all[i-1].Seq {
			t.Fatalf("out of order or twice: %+v", all)
		}
	}
	if kinds[nacre.LogProcessStart] != 2 || kinds[nacre.LogProcessEnd] != 2 {
		t.Fatalf("kinds: %v", kinds)
	}
}

func nodeStopDuringStart(t *testing.T, n NodeUnderTest) {
	for i := range 5 {
		spec := n.Spec()
		done := make(chan error, 1)
		go func() { _, err := n.Node.Start(t.Context(), spec); done <- err }()
		time.Sleep(time.Duration(i) * time.Millisecond) // any moment will do
		n.stop(t, spec.Sandbox)
		err := <-done
		if err == nil {
			n.stop(t, spec.Sandbox) // the stop came before the start
		} else if c := nacre.ErrorCode(err); c != nacre.CodeConflict {
			t.Fatalf("the start ended with %v", err)
		}
		if _, ok := n.Traffic.Route(spec.Sandbox); ok {
			t.Fatal("it runs")
		}
	}
	n.noLeaks(t)
}

func nodeRestart(t *testing.T, n NodeUnderTest) {
	if n.Restart == nil {
		t.Skip("no Restart")
	}
	spec := n.Spec()
	spec.Secure = true
	spec.Env = map[string]string{"KEPT": "yes"}
	st, err := n.Node.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	n.run(t, spec.Sandbox, "echo before")
	n = n.Restart(t)
	defer n.stop(t, spec.Sandbox)
	if got := n.run(t, spec.Sandbox, "echo $KEPT"); got != "yes\n" {
		t.Fatalf("after the restart the guest said %q", got)
	}
	r, ok := n.Traffic.Route(spec.Sandbox)
	if !ok || r.Team != spec.Team || !r.Secure {
		t.Fatalf("route: %+v, %v", r, ok)
	}
	list, err := n.Node.Machines(t.Context())
	if err != nil || len(list) != 1 || list[0].Machine != st.Machine {
		t.Fatalf("machines: %+v, %v", list, err)
	}
	_, err = n.Node.Start(t.Context(), spec)
	nodeWantCode(t, err, nacre.CodeConflict)
	n.stop(t, spec.Sandbox)
	l, err := n.Telemetry.Logs(t.Context(), spec.Sandbox, nacre.LogQuery{Type: nacre.LogStdout})
	if err != nil || len(l) != 2 || strings.TrimSpace(l[0].Message) != "before" || strings.TrimSpace(l[1].Message) != "yes" {
		t.Fatalf("the log has a gap or repeats itself: %+v, %v", l, err)
	}
	n.noLeaks(t)
}

func nodeCapacity(t *testing.T, n NodeUnderTest) {
	before, err := n.Node.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	spec, _ := n.start(t)
	during, err := n.Node.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n.stop(t, spec.Sandbox)
	after, err := n.Node.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if during.Sandboxes != before.Sandboxes+1 || after.Sandboxes != before.Sandboxes {
		t.Fatalf("sandboxes: %d, %d, %d", before.Sandboxes, during.Sandboxes, after.Sandboxes)
	}
	if want := int64(spec.Resources.MemoryMiB) << 20; during.MemoryPromised-before.MemoryPromised != want || after.MemoryPromised != before.MemoryPromised {
		t.Fatalf("promised: %d, %d, %d; the sandbox has %d", before.MemoryPromised, during.MemoryPromised, after.MemoryPromised, want)
	}
	if before.MemoryTotal <= 0 || before.DiskTotal <= 0 || before.MaxSandboxes <= 0 || before.CPUs <= 0 {
		t.Fatalf("capacity: %+v", before)
	}
}
