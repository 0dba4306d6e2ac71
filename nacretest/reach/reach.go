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
	"sync"
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
	nacre.Machine
	h    Host
	id   nacre.MachineID
	slot nacre.Slot
	line
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
		l, err := call(ctx, m)
		if err == nil {
			t.Cleanup(func() { l.Close() })
			return machine{m, h, id, slot, l}
		}
		if time.Now().After(end) {
			t.Fatalf("the guest does not answer: %v", err)
		}
	}
}

// line is a connection to a guest.
type line struct {
	net.Conn
	in *bufio.Reader
}

func call(ctx context.Context, m nacre.Machine) (line, error) {
	c, err := m.Dial(ctx, nacre.AgentPort)
	return line{c, bufio.NewReader(c)}, err
}

// ask has the guest try something for a time, and returns what it says of it.
func (l line) ask(patience time.Duration, q string) (string, error) {
	_ = l.SetDeadline(time.Now().Add(10*patience + 10*time.Second))
	if _, err := fmt.Fprintln(l, patience, q); err != nil {
		return "", err
	}
	a, err := l.in.ReadString('\n')
	return strings.TrimSpace(a), err
}

// try has the guest do something within the host's patience; "" means that it worked.
func (m machine) try(t *testing.T, q string) (out, failure string) {
	t.Helper()
	return m.within(t, m.h.Patience, q)
}

func (m machine) within(t *testing.T, patience time.Duration, q string) (out, failure string) {
	t.Helper()
	began := time.Now()
	a, err := m.ask(patience, q)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	t.Logf("%-40s %.100s %v", q, a, time.Since(began).Round(time.Microsecond))
	if out, ok := strings.CutPrefix(a, "ok"); ok {
		return strings.TrimSpace(out), ""
	}
	return "", a
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

// silent demands that nothing comes back of what is tried, all at once.
func (m machine) silent(t *testing.T, qs ...string) {
	t.Helper()
	var all sync.WaitGroup
	for _, q := range qs {
		all.Go(func() {
			l, err := call(t.Context(), m)
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Close()
			switch a, err := l.ask(2*time.Second, q); {
			case err != nil:
				t.Errorf("%s: %v", q, err)
			case strings.HasPrefix(a, "ok"):
				t.Errorf("%s is open", q)
			default:
				t.Logf("%-40s %.100s", q, a)
			}
		})
	}
	all.Wait()
}
