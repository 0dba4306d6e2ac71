package gvisor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
)

// realHost builds the real agent and finds a base image that the host has.
func realHost(t testing.TB) func(t testing.TB) nacre.MachineSpec {
	t.Helper()
	images, _ := filepath.Glob("/var/cache/nacre/base-*.erofs")
	if len(images) == 0 {
		t.Skip("no base image is in /var/cache/nacre")
	}
	agent := filepath.Join(t.TempDir(), "nacre-agent")
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "github.com/nacrehq/nacre/cmd/nacre-agent")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return func(t testing.TB) nacre.MachineSpec {
		s := newSpec(t)
		s.AgentPath, s.Root.Image, s.Root.UpperMiB = agent, images[0], 1024
		s.Resources = nacre.Resources{CPUs: 2, MemoryMiB: 512, MaxPIDs: 1024}
		return s
	}
}

// agentOf is the host's client of a machine's agent.
func agentOf(t testing.TB, m nacre.Machine, hostToken string) *envd.Client {
	t.Helper()
	c := envd.New(envd.Options{Dial: m.Dial, HostToken: hostToken})
	t.Cleanup(c.Close)
	for begin := time.Now(); c.Healthy(t.Context()) != nil; {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("the agent does not answer")
		}
		time.Sleep(time.Millisecond) // nothing on the host says when it listens
	}
	return c
}

func initOf(t testing.TB, c *envd.Client, name string) {
	t.Helper()
	entropy := make([]byte, 64)
	_, _ = rand.Read(entropy)
	check(t, c.Init(t.Context(), nacre.AgentInit{Hostname: name, HostToken: "token-" + name, Time: time.Now(), Entropy: entropy, NewIdentity: true,
		Env: map[string]string{"WHO": name}, DefaultUser: "root"}))
}

// shell runs a script in the guest and returns its output.
func shell(t testing.TB, c *envd.Client, script string) string {
	t.Helper()
	p, err := c.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-c", script}})
	check(t, err)
	out, exit := drain(t, p)
	if exit == nil || exit.Code != 0 {
		t.Fatalf("%s: %+v: %s", script, exit, out)
	}
	return strings.TrimSpace(out)
}

func drain(t testing.TB, p nacre.ProcessStream) (string, *nacre.ProcessExit) {
	t.Helper()
	defer p.Close()
	var out bytes.Buffer
	var exit *nacre.ProcessExit
	for {
		e, err := p.Next()
		if errors.Is(err, io.EOF) {
			return out.String(), exit
		}
		check(t, err)
		out.Write(e.Stdout)
		out.Write(e.Stderr)
		out.Write(e.Term)
		if e.Exit != nil {
			exit = e.Exit
		}
	}
}

// TestAgentRestored: what a user of the real agent on the real base finds again
// after a restore, and what must be new.
func TestAgentRestored(t *testing.T) {
	newReal := realHost(t)
	r := newRuntime(t)
	m := start(t, r, newReal(t))
	a := agentOf(t, m, "token-first")
	initOf(t, a, "first")
	// A Python that counts, a terminal, and a process that waits for its input.
	counter, err := a.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/usr/bin/python3", Args: []string{"-uc",
		"import sys,random\nrandom.seed()\nx=[random.random() for _ in range(100000)]\ns=sum(x)\nfor line in sys.stdin: print('counted', abs(sum(x)-s)<1e-9)"}, Stdin: true, Tag: "counter"})
	check(t, err)
	defer counter.Close()
	term, err := a.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-i"}, Term: &nacre.TermSize{Cols: 80, Rows: 24}})
	check(t, err)
	defer term.Close()
	shell(t, a, "echo last > /root/last; python3 -c 'import numpy' 2>/dev/null; true")
	ids := shell(t, a, "cat /etc/machine-id")

	dir := t.TempDir()
	info, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	t.Logf("snapshot %.1f MiB, stood still for %v", float64(info.Bytes())/(1<<20), info.Stopped)
	shell(t, a, "true") // it goes on

	seen := []string{ids}
	for _, name := range []string{"second", "third"} {
		spec := newReal(t)
		spec.Hostname = name
		begin := time.Now()
		restored, err := r.Restore(t.Context(), spec, dir)
		check(t, err)
		stopLater(t, restored, spec)
		// The agent still has its first identity: the host takes it over with that.
		b := agentOf(t, restored, "token-first")
		t.Logf("the agent answers after %v", time.Since(begin))
		initOf(t, b, name)
		if err := b.Init(t.Context(), nacre.AgentInit{HostToken: "x"}); err == nil {
			t.Error("the old host token is still good")
		}
		b = agentOf(t, restored, "token-"+name)
		procs, err := b.Processes().List(t.Context())
		check(t, err)
		for _, want := range []nacre.ProcessStream{counter, term} {
			if !slices.ContainsFunc(procs, func(p nacre.ProcessInfo) bool { return p.PID == want.PID() }) {
				t.Errorf("process %d is not listed: %+v", want.PID(), procs)
			}
		}
		talk(t, b, counter.PID(), "go\n", "counted True")
		talk(t, b, term.PID(), "echo $((6*7))\n", "42")
		for _, c := range []struct{ script, want string }{
			{"cat /root/last", "last"}, {"hostname", name}, {"cat /etc/hostname", name}, {"echo $WHO", name},
		} {
			if got := shell(t, b, c.script); got != c.want {
				t.Errorf("%s: %q, want %q", c.script, got, c.want)
			}
		}
		for _, s := range []string{"cat /etc/machine-id", "head -c16 /dev/urandom | od -An -tx1",
			"python3 -c 'import random; print(random.random())'", "python3 -c 'import uuid; print(uuid.uuid4())'",
			"cat /proc/sys/kernel/random/uuid 2>/dev/null || python3 -c 'import os; print(os.urandom(8).hex())'"} {
			v := shell(t, b, s)
			if slices.Contains(seen, v) {
				t.Errorf("%s gives %q a second time", s, v)
			}
			seen = append(seen, v)
		}
		before := time.Now()
		at, err := time.Parse(time.RFC3339Nano, shell(t, b, "date -u +%Y-%m-%dT%H:%M:%S.%NZ"))
		check(t, err)
		if off := at.Sub(before); off < -50*time.Millisecond || off > time.Since(before)+50*time.Millisecond {
			t.Errorf("the guest's clock is off by %v", off)
		}
	}
}

// talk writes to a process that is connected to by its pid, and waits for an answer.
func talk(t *testing.T, c *envd.Client, pid int, say, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p, err := c.Processes().Connect(ctx, pid)
	check(t, err)
	defer p.Close()
	check(t, c.Processes().Input(ctx, pid, []byte(say)))
	var out bytes.Buffer
	for !strings.Contains(out.String(), want) {
		e, err := p.Next()
		if err != nil || e.Exit != nil {
			t.Fatalf("process %d says %q, then %v %v", pid, out.String(), err, e.Exit)
		}
		out.Write(e.Stdout)
		out.Write(e.Term)
	}
}
