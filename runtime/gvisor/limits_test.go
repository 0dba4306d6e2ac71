package gvisor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/agentfs"
	"github.com/nacrehq/nacre/nacretest"
)

// raise looks for the limit of tasks as the guest's root, and as root of namespaces
// of its own. (There it can mount gVisor's cgroups anew and raise the limit; what it
// gains is that the host's limit ends its sandbox.)
const raise = `
import ctypes, os
libc = ctypes.CDLL(None)
def look(who):
    for d, _, files in os.walk("/sys/fs/cgroup"):
        for f in files: print(who, "sees", d, f)
look("root")
libc.unshare(0x10000000 | 0x00020000)
libc.umount2(b"/sys/fs/cgroup", 2)
look("a namespace")
`

// TestFault13_ForkBomb: a shell's bomb meets the guest's limit of tasks and not the
// host's, so the guest goes on; its root does not see the limit, and a restored
// guest has it still.
func TestFault13_ForkBomb(t *testing.T) {
	spec := realHost(t)
	r := newRuntime(t)
	s := spec(t)
	s.Resources.MaxPIDs = 400
	m := start(t, r, s)
	a := agentOf(t, m, "")
	initOf(t, a, "bomb")
	if out := shell(t, a, "exec 2>&1; python3 -c '"+raise+"'; true"); out != "" {
		t.Errorf("the guest's root found its cgroup: %s", out)
	}
	const spawn = `import subprocess
n = 0
try:
    while n < 2000:
        subprocess.Popen(["sleep", "1000"]); n += 1
except OSError as e: print(n, e.strerror)
`
	refused := func(a *machine, pids int, out string) {
		t.Helper()
		limit := guestTasks(pids)
		var n int
		var why string
		if i := strings.IndexByte(out, ' '); i > 0 {
			n, why = atoi(out[:i]), out[i+1:]
		}
		if n < limit/2 || n >= limit || why != "Resource temporarily unavailable" {
			t.Errorf("a guest that may have %d tasks made %d, then: %q", limit, n, why)
		}
		u, err := a.Usage(t.Context())
		check(t, err)
		if u.PIDs >= pids {
			t.Errorf("%d tasks on the host, limit %d", u.PIDs, pids)
		}
		t.Logf("%d children of the guest are %d tasks of the host", n, u.PIDs)
	}
	refused(m, s.Resources.MaxPIDs, shell(t, a, "python3 -c '"+spawn+"' > /tmp/out; kill $(pidof sleep); cat /tmp/out"))
	// The classic, for as long as it likes.
	p, err := a.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-c", "bomb() { bomb | bomb & }; bomb 2> /dev/null"}})
	check(t, err)
	defer p.Close()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		u, err := m.Usage(t.Context())
		check(t, err)
		if u.PIDs >= s.Resources.MaxPIDs {
			t.Fatalf("%d tasks on the host, limit %d", u.PIDs, s.Resources.MaxPIDs)
		}
		time.Sleep(20 * time.Millisecond) // a sample of what no event tells
	}
	check(t, a.Healthy(t.Context()))

	calm := start(t, r, spec(t))
	c := agentOf(t, calm, "")
	initOf(t, c, "calm")
	dir := t.TempDir()
	_, err = calm.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	for _, pids := range []int{s.Resources.MaxPIDs, 1024} { // fewer than it had, and as many
		s2 := spec(t)
		s2.Resources.MaxPIDs = pids
		f, err := r.Restore(t.Context(), s2, dir)
		check(t, err)
		stopLater(t, f, s2)
		c = agentOf(t, f, "token-calm")
		initOf(t, c, "calm")
		refused(f.(*machine), pids, shell(t, c, "python3 -c '"+spawn+"' > /tmp/out; kill $(pidof sleep); cat /tmp/out"))
	}
}

func atoi(s string) (n int) {
	for _, c := range s {
		n = 10*n + int(c-'0')
	}
	return n
}

// TestSweepRemovesOldAgents: those that no machine has, and not a moment after they
// were made.
func TestSweepRemovesOldAgents(t *testing.T) {
	s := newSpec(t)
	dir := t.TempDir()
	s.AgentPath = filepath.Join(dir, "agent")
	b, err := os.ReadFile(host.agent)
	check(t, err)
	check(t, os.WriteFile(s.AgentPath, b, 0o755))
	r, err := New(Config{CgroupParent: host.parent, Program: host.program, Log: nacretest.Log(t)})
	check(t, err)
	m, err := r.Start(t.Context(), s)
	check(t, err)
	used, err := r.agents.Of(s.AgentPath, agentImage)
	check(t, err)
	check(t, r.Close())

	// The next version of the daemon, with another agent.
	check(t, os.WriteFile(s.AgentPath, append(b, 0), 0o755))
	old, young := filepath.Join(dir, "agent-"+strings.Repeat("0", 32)+".erofs"), filepath.Join(dir, "agent-"+strings.Repeat("1", 32)+".erofs")
	for _, path := range []string{used, old, young} {
		if path != used {
			check(t, os.WriteFile(path, nil, 0o444))
		}
		if path != young {
			past := time.Now().Add(-2 * agentfs.Grace)
			check(t, os.Chtimes(path, past, past))
		}
	}
	r, err = New(Config{CgroupParent: host.parent, Program: host.program, Agent: s.AgentPath, Log: nacretest.Log(t)})
	check(t, err)
	t.Cleanup(func() { check(t, r.Close()) })
	keep := func(id nacre.MachineID) bool { return id == s.ID }
	there := func(path string) bool {
		_, err := os.Stat(path)
		return !errors.Is(err, fs.ErrNotExist)
	}
	check(t, r.Sweep(t.Context(), keep))
	if !there(old) {
		t.Error("swept while nobody knew what a kept machine uses")
	}
	back, err := r.Recover(t.Context(), m.Handle())
	check(t, err)
	stopLater(t, back, s)
	// Sandboxes that wait use no agent yet.
	waits := r.cgroup.Group(r.own + "0")
	check(t, waits.Create())
	defer func() { check(t, waits.Destroy(context.Background())) }()
	check(t, r.Sweep(t.Context(), keep))
	current, err := r.agents.Of(s.AgentPath, agentImage)
	check(t, err)
	if there(old) || !there(young) || !there(used) || !there(current) {
		t.Errorf("old %t, young %t, used %t, current %t", there(old), there(young), there(used), there(current))
	}
	check(t, back.Stop(context.Background()))
	check(t, r.Sweep(t.Context(), keep))
	if there(used) {
		t.Error("an agent that nobody has any more stayed")
	}
}
