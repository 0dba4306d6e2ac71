// Package guesttest tries the network from inside real machines: gVisor's own
// network stack is not the kernel's that the other tests use.
package guesttest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/network"
	"github.com/nacrehq/nacre/runtime/gvisor"
)

func TestMain(m *testing.M) {
	if gvisor.Main() {
		return
	}
	os.Exit(fakenet.Main(m))
}

// build makes the guest, an empty root image, and a static copy of this test
// binary, which becomes the sandbox.
func build(t *testing.T) (guest, image, program string) {
	t.Helper()
	dir := t.TempDir()
	guest, image, program = filepath.Join(dir, "guest"), filepath.Join(dir, "root.erofs"), filepath.Join(dir, "static.test")
	root := filepath.Join(dir, "root")
	for _, d := range []string{"etc", "tmp", "proc", "sys", "dev", "run", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("guest\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "github.com/nacrehq/nacre/nacretest/fakenet/guest"},
		{"go", "test", "-c", "-o", program, "."},
		{"mkfs.erofs", "-E", "noinline_data", image, root},
	} {
		c := exec.Command(args[0], args[1:]...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			if exec.ErrNotFound == err || strings.Contains(err.Error(), "not found") {
				t.Skipf("%s is missing on this host", args[0])
			}
			t.Fatalf("%s: %v: %s", args[0], err, out)
		}
	}
	return guest, image, program
}

// machine is one booted guest.
type machine struct {
	t    *testing.T
	id   nacre.MachineID
	slot nacre.Slot
	conn net.Conn
	in   *bufio.Reader
}

// try has the guest do something; "" means that it worked.
func (m machine) try(q string) (out, failure string) {
	m.t.Helper()
	_ = m.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintln(m.conn, q); err != nil {
		m.t.Fatalf("%s: %v", q, err)
	}
	line, err := m.in.ReadString('\n')
	if err != nil {
		m.t.Fatalf("%s: %v", q, err)
	}
	line = strings.TrimSpace(line)
	if out, ok := strings.CutPrefix(line, "ok"); ok {
		return strings.TrimSpace(out), ""
	}
	return "", line
}

func TestGVisorGuest(t *testing.T) {
	fakenet.Start(t)
	guest, image, program := build(t)
	n, err := network.New(network.Config{Instance: "gt", Ready: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := network.Destroy("gt"); err != nil {
			t.Error(err)
		}
	})
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	rt, err := gvisor.New(gvisor.Config{CgroupParent: "nacre-net-" + strconv.Itoa(os.Getpid()), Program: program})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
		if err := rt.RemoveParent(); err != nil {
			t.Error(err)
		}
	})
	boot := func(p nacre.EgressPolicy) machine { return start(t, n, rt, guest, image, p) }
	a, b := boot(nacre.EgressPolicy{}), boot(nacre.EgressPolicy{DenyAll: true})

	gw := a.slot.Gateway.String()
	for _, c := range []struct {
		m    machine
		do   string
		want bool
	}{
		{a, "tcp 1.1.1.1:7", true},
		{a, "udp 8.8.8.8:7", true},
		{a, "dns " + gw + ":53 example.com", true},
		{a, "dns " + gw + ":53 big.test", true}, // over TCP
		{a, "tcp " + fakenet.Metadata + ":80", false},
		{a, "tcp [::ffff:169.254.169.254]:80", false},
		{a, "tcp [fd00:ec2::254]:80", false},
		{a, "tcp 10.99.0.1:7", false},
		{a, "tcp " + fakenet.HostAddr + ":53", false},
		{a, "tcp " + fakenet.Neighbour + ":7", false},
		{a, "tcp " + b.slot.Guest.Addr().String() + ":49983", false},
		{b, "tcp 1.1.1.1:7", false},
		{b, "udp 1.1.1.1:7", false},
		{b, "dns " + gw + ":53 example.com", false},
	} {
		began := time.Now()
		out, failure := c.m.try(c.do)
		t.Logf("%-40s %s%s %v", c.do, out, failure, time.Since(began).Round(time.Microsecond))
		if (failure == "") != c.want {
			t.Errorf("%s: %s%s, want success %v", c.do, out, failure, c.want)
		}
	}
	// The policy changes under a running guest, and the host still reaches it.
	if err := n.SetEgress(t.Context(), b.id, nacre.EgressPolicy{}); err != nil {
		t.Fatal(err)
	}
	if _, failure := b.try("tcp 1.1.1.1:7"); failure != "" {
		t.Errorf("after opening: %s", failure)
	}
	const size = 256 << 20
	took, failure := a.try(fmt.Sprintf("get 1.1.1.1:7 %d", size))
	if failure != "" {
		t.Fatal(failure)
	}
	d, _ := time.ParseDuration(took)
	t.Logf("%d MiB out and back in %v: %.0f MB/s each way", size>>20, d, float64(size)/1e6/d.Seconds())
}

func start(t *testing.T, n *network.Network, rt *gvisor.Runtime, guest, image string, p nacre.EgressPolicy) machine {
	t.Helper()
	ctx := context.Background()
	id := nacre.NewMachineID()
	slot, err := n.Acquire(ctx, id, p)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	spec := nacre.MachineSpec{
		ID: id, Hostname: "guest", AgentPath: guest, Slot: slot,
		Root:      nacre.RootFS{Image: image, UpperDir: filepath.Join(dir, "upper"), UpperMiB: 64},
		StateDir:  filepath.Join(dir, "state"),
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 256, MaxPIDs: 256},
	}
	for _, d := range []string{spec.Root.UpperDir, spec.StateDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m, err := rt.Start(ctx, spec)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := m.Stop(ctx); err != nil {
			t.Error(err)
		}
		if err := n.Release(ctx, id); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(time.Millisecond) { // nothing says when the guest listens
		c, err := m.Dial(ctx, nacre.AgentPort)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return machine{t, id, slot, c, bufio.NewReader(c)}
		}
		if time.Now().After(end) {
			t.Fatalf("the guest does not answer: %v", err)
		}
	}
}
