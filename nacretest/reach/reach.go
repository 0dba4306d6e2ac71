package reach

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
)

// Host is what the machines are made of, on a host of fakenet's.
type Host struct {
	Network nacre.Network // with room for two machines, after its Recover
	Runtime nacre.Runtime
	// Guest and Image are what Build made.
	Guest, Image string
	// RawSockets tells that a guest sends whatever packets it likes. One without cannot
	// even try.
	RawSockets bool
	// Patience is how long an answer may take.
	Patience time.Duration
	// Bulk is how many bytes go out and come back, for the rate in the test's log.
	Bulk int64
}

// Build makes the guest's program and an empty root image, in dir.
func Build(dir string) (guest, image string, err error) {
	guest, image = filepath.Join(dir, "guest"), filepath.Join(dir, "root.erofs")
	root := filepath.Join(dir, "root")
	for _, d := range []string{"etc", "tmp", "proc", "sys", "dev", "run", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", "", err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("guest\n"), 0o644); err != nil {
		return "", "", err
	}
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "github.com/nacrehq/nacre/nacretest/fakenet/guest"},
		{"mkfs.erofs", "-E", "noinline_data", image, root},
	} {
		c := exec.Command(args[0], args[1:]...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return guest, image, nil
}

// Test boots two machines and tries what they reach. fakenet was started, and inet is
// its internet.
func Test(t *testing.T, h Host, inet *fakenet.Internet) {
	a, b := h.boot(t, Everywhere()), h.boot(t, nacre.EgressPolicy{DenyAll: true})
	t.Run("Internet", func(t *testing.T) { h.internet(t, a, b) })
	t.Run("Fault39_Metadata", func(t *testing.T) { h.metadata(t, a) })
	t.Run("Fault40_ClosedNetworks", func(t *testing.T) { h.closed(t, a) })
	t.Run("Fault40_Host", func(t *testing.T) { h.hosts(t, a) })
	t.Run("Fault40_OtherMachines", func(t *testing.T) { h.others(t, a, b) })
	t.Run("Fault40_Spoofing", func(t *testing.T) { h.spoofing(t, a, b, inet) })
	t.Run("Trap17_Policies", func(t *testing.T) { h.policies(t, b) })
}

// machine is a booted guest.
type machine struct {
	h    Host
	id   nacre.MachineID
	slot nacre.Slot
	conn net.Conn
	in   *bufio.Reader
}

func (h Host) boot(t *testing.T, p nacre.EgressPolicy) machine {
	t.Helper()
	ctx := context.Background()
	id := nacre.NewMachineID()
	slot, err := h.Network.Acquire(ctx, id, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Network.Release(ctx, id); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	spec := nacre.MachineSpec{
		ID: id, Hostname: "guest", AgentPath: h.Guest, Slot: slot,
		Root:      nacre.RootFS{Image: h.Image, UpperDir: filepath.Join(dir, "upper"), UpperMiB: 64},
		StateDir:  filepath.Join(dir, "state"),
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 256, MaxPIDs: 256},
	}
	for _, d := range []string{spec.Root.UpperDir, spec.StateDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m, err := h.Runtime.Start(ctx, spec)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := m.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(8 * h.Patience); ; time.Sleep(time.Millisecond) { // nothing says when the guest listens
		c, err := m.Dial(ctx, nacre.AgentPort)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return machine{h, id, slot, c, bufio.NewReader(c)}
		}
		if time.Now().After(end) {
			t.Fatalf("the guest does not answer: %v", err)
		}
	}
}

// try has the guest do something within the host's patience; "" means that it worked.
func (m machine) try(t *testing.T, q string) (out, failure string) {
	t.Helper()
	return m.within(t, m.h.Patience, q)
}

func (m machine) within(t *testing.T, patience time.Duration, q string) (out, failure string) {
	t.Helper()
	_ = m.conn.SetDeadline(time.Now().Add(10 * m.h.Patience))
	began := time.Now()
	if _, err := fmt.Fprintln(m.conn, patience, q); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	line, err := m.in.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	line = strings.TrimSpace(line)
	t.Logf("%-40s %.100s %v", q, line, time.Since(began).Round(time.Microsecond))
	if out, ok := strings.CutPrefix(line, "ok"); ok {
		return strings.TrimSpace(out), ""
	}
	return "", line
}

// open demands an echo.
func (m machine) open(t *testing.T, proto, addr string) {
	t.Helper()
	if _, failure := m.try(t, proto+" "+addr); failure != "" {
		t.Errorf("%s %s is closed: %s", proto, addr, failure)
	}
}

// refused demands that it is at once, so that a slow host proves as much as a quick
// one.
func (m machine) refused(t *testing.T, proto, addr string) {
	t.Helper()
	switch _, failure := m.try(t, proto+" "+addr); {
	case failure == "":
		t.Errorf("%s %s is open", proto, addr)
	case !strings.Contains(failure, "refused") && !strings.Contains(failure, "unreachable"):
		t.Errorf("%s %s is not refused: %s", proto, addr, failure)
	}
}

// silent demands that nothing comes back.
func (m machine) silent(t *testing.T, q string) {
	t.Helper()
	if _, failure := m.within(t, 2*time.Second, q); failure == "" {
		t.Errorf("%s is open", q)
	}
}
