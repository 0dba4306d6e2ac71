// Package guesttest tries the node with real machines, the real agent and the base
// image: what users find again after a pause is gVisor's and the agent's doing as
// much as the node's.
package guesttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
	"github.com/nacrehq/nacre/blob"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/network"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/runtime/gvisor"
)

func TestMain(m *testing.M) {
	if gvisor.Main() {
		return
	}
	os.Exit(fakenet.Main(m))
}

const (
	instance = "nt"
	build    = nacre.BuildID("bnodeguesttest000000")
)

// world is one installation: what is on disk, and the rooms of one daemon over it.
type world struct {
	t                   testing.TB
	dir, program, agent string
	base, cgroup        string
	memoryMiB           int
	tweak               func(*image.ArtifactOptions)
	standby             node.Standby
	n                   *node.Node
	arts                *image.Artifacts
	stop                func()
}

// newWorld builds the agent and a static copy of this test, which becomes the
// sandboxes, over the base image that the host has.
func newWorld(t testing.TB) *world {
	t.Helper()
	bases, _ := filepath.Glob("/var/cache/nacre/base-*.erofs")
	if len(bases) == 0 {
		t.Skip("no base image is in /var/cache/nacre")
	}
	// Beside the image where that can be: then it is linked, not copied.
	dir, err := os.MkdirTemp(filepath.Dir(bases[0]), "nodetest-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, base: bases[len(bases)-1], memoryMiB: 512, cgroup: "nacre-node-" + strconv.Itoa(os.Getpid()),
		program: filepath.Join(dir, "static.test"), agent: filepath.Join(dir, "nacre-agent")}
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", w.agent, "github.com/nacrehq/nacre/cmd/nacre-agent"},
		{"go", "test", "-trimpath", "-buildvcs=false", "-c", "-o", w.program, "."},
	} {
		c := exec.Command(args[0], args[1:]...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	fakenet.Start(t)
	t.Cleanup(func() {
		if err := network.Destroy(instance); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// start brings a daemon's rooms up over what earlier ones left.
func (w *world) start() *node.Node {
	w.t.Helper()
	out := io.Discard
	if testing.Verbose() {
		out = os.Stderr
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	net1, err := network.New(network.Config{Instance: instance, Ready: 4, Log: log})
	w.check(err)
	rt, err := gvisor.New(gvisor.Config{CgroupParent: w.cgroup, Program: w.program, Log: log})
	w.check(err)
	images, err := image.Open(image.Options{Dir: filepath.Join(w.dir, "images"), Logger: log})
	w.check(err)
	w.check(images.Import(w.t.Context(), build, w.base))
	blobs, err := blob.OpenDir(filepath.Join(w.dir, "blobs"))
	w.check(err)
	options := image.ArtifactOptions{Dir: filepath.Join(w.dir, "snapshots"), Blobs: blobs, Logger: log}
	if w.tweak != nil {
		w.tweak(&options)
	}
	w.arts, err = image.OpenArtifacts(options)
	w.check(err)
	key := nacre.TokenKey{1, 2, 3}
	w.n, err = node.New(node.Config{
		Dir: filepath.Join(w.dir, "node"), Runtime: rt, Network: net1, Images: images, Artifacts: w.arts,
		AgentPath: w.agent, TokenKey: key, Logger: log, Standby: w.standby,
		NewAgent: func(dial func(ctx context.Context, port int) (net.Conn, error), hostToken, accessToken string) nacre.Agent {
			return envd.New(envd.Options{Dial: dial, HostToken: hostToken, AccessToken: accessToken})
		},
	})
	w.check(err)
	w.check(w.n.Recover(w.t.Context()))
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		err := errors.Join(w.n.Close(), w.arts.Close(), images.Close(), rt.Close(), net1.Close(context.Background()))
		if err != nil {
			w.t.Error(err)
		}
	}
	w.t.Cleanup(func() {
		w.end()
		w.stop()
		_ = rt.RemoveParent()
	})
	return w.n
}

// end stops every sandbox that is left.
func (w *world) end() {
	list, _ := w.n.Machines(context.Background())
	for _, m := range list {
		_ = w.n.Stop(context.Background(), m.Sandbox)
	}
}

// restart is what a kill -9 and a new start of the daemon are to what is on disk.
func (w *world) restart() *node.Node {
	w.stop()
	return w.start()
}

func (w *world) spec() nacre.StartSpec {
	return nacre.StartSpec{Sandbox: nacre.NewSandboxID(), Team: "team_aaaaaaaaaaaaaaaa", Build: build, Secure: true,
		Env:       map[string]string{"WHO": "somebody"},
		Resources: nacre.Resources{CPUs: 2, MemoryMiB: w.memoryMiB, DiskMiB: 1024, MaxPIDs: 1024}}
}

func (w *world) begin(s nacre.StartSpec) nacre.Started {
	w.t.Helper()
	st, err := w.n.Start(w.t.Context(), s)
	w.check(err)
	return st
}

func (w *world) guest(id nacre.SandboxID) nacre.Agent {
	w.t.Helper()
	a, err := w.n.Agent(w.t.Context(), id)
	w.check(err)
	return a
}

// shell runs a script as root and returns what it printed.
func (w *world) shell(id nacre.SandboxID, script string) string {
	w.t.Helper()
	p, err := w.guest(id).Processes().Start(w.t.Context(), nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-c", script}, User: "root"})
	w.check(err)
	out, exit := w.drain(p)
	if exit == nil || exit.Code != 0 {
		w.t.Fatalf("%s: %+v: %s", script, exit, out)
	}
	return strings.TrimSpace(out)
}

func (w *world) drain(p nacre.ProcessStream) (string, *nacre.ProcessExit) {
	w.t.Helper()
	defer p.Close()
	var out bytes.Buffer
	var exit *nacre.ProcessExit
	for {
		e, err := p.Next()
		if errors.Is(err, io.EOF) {
			return out.String(), exit
		}
		w.check(err)
		out.Write(e.Stdout)
		out.Write(e.Stderr)
		out.Write(e.Term)
		if e.Exit != nil {
			exit = e.Exit
		}
	}
}

// until reads the process's output until it has the text.
func (w *world) until(p nacre.ProcessStream, text string) {
	w.t.Helper()
	var out bytes.Buffer
	for !strings.Contains(out.String(), text) {
		e, err := p.Next()
		if err != nil || e.Exit != nil {
			w.t.Fatalf("no %q in %q: %v, %+v", text, out.String(), err, e.Exit)
		}
		out.Write(e.Stdout)
		out.Write(e.Stderr)
		out.Write(e.Term)
	}
}
