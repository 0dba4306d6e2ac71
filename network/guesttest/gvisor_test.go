// Package guesttest tries the network from inside real machines: gVisor's own
// network stack is not the kernel's that the other tests use.
package guesttest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/nacretest/reach"
	"github.com/nacrehq/nacre/network"
	"github.com/nacrehq/nacre/runtime/gvisor"
)

func TestMain(m *testing.M) {
	if gvisor.Main() {
		return
	}
	os.Exit(fakenet.Main(m))
}

func TestGVisorGuest(t *testing.T) {
	inet := fakenet.Start(t)
	dir := t.TempDir()
	guest, image, err := reach.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	// A static copy of this test binary becomes the sandbox.
	program := filepath.Join(dir, "static.test")
	c := exec.Command("go", "test", "-c", "-o", program, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
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
	reach.Test(t, reach.Host{Network: n, Runtime: rt, Guest: guest, Image: image, Patience: 5 * time.Second, Bulk: 256 << 20}, inet)
}
