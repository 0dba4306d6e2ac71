package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
)

// daemon is the real binary as a process of its own.
type daemon struct {
	*envd.Client
	pid  int
	dir  string
	addr string
}

// options of a daemon: whether it is the init process of a PID namespace, and
// how many descriptors it may have.
type options struct {
	pid1  bool
	files int
}

// startDaemon builds and starts the agent. It is told no time, name or resolver: the machine is ours.
func startDaemon(t *testing.T, how options) *daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the agent starts processes as other users and in a PID namespace")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "nacre-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	addr := freeAddr(t)
	cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("ulimit -n %d; exec %s -listen %s", how.files, bin, addr))
	cmd.Stderr = os.Stderr
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if how.pid1 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS
	}
	if err := cmd.Start(); err != nil {
		if how.pid1 && errors.Is(err, syscall.EPERM) {
			t.Skipf("needs to make a PID namespace: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	d := &daemon{pid: cmd.Process.Pid, dir: dir, addr: addr, Client: envd.New(envd.Options{
		Dial: func(ctx context.Context, _ int) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
		HostToken: "host",
	})}
	t.Cleanup(d.Close)
	for begin := time.Now(); d.Healthy(context.Background()) != nil; {
		if time.Since(begin) > time.Minute {
			t.Fatal("the agent does not answer")
		}
		time.Sleep(time.Millisecond) // another process: there is nothing to wait on
	}
	if err := d.Init(context.Background(), nacre.AgentInit{HostToken: "host", DefaultUser: "root"}); err != nil {
		t.Fatal(err)
	}
	return d
}

// freeAddr is one of this process's own, where nobody takes the port in between.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", fmt.Sprintf("127.77.%d.%d:0", os.Getpid()>>8&255, os.Getpid()&255))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

// status reads one line of /proc/pid/status, in KiB where it has a unit.
func (d *daemon) status(t *testing.T, name string) int {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", d.pid))
	if err != nil {
		t.Fatalf("the agent is gone: %v", err)
	}
	defer func() { _ = f.Close() }()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if k, v, _ := strings.Cut(sc.Text(), ":"); k == name {
			n, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s", name)
	return 0
}

// run returns a command's output and exit code.
func (d *daemon) run(t *testing.T, script string) (string, int) {
	t.Helper()
	s, err := d.Processes().Start(context.Background(), nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", script}})
	if err != nil {
		t.Error(err)
		return "", -2
	}
	defer func() { _ = s.Close() }()
	out, code := "", -2
	for {
		e, err := s.Next()
		if errors.Is(err, io.EOF) {
			return out, code
		}
		if err != nil {
			t.Error(err)
			return out, code
		}
		out += string(e.Stdout)
		if e.Exit != nil {
			code = e.Exit.Code
		}
	}
}

// rssBound is far above what the agent needs and far below what it handles here.
const rssBound = 40 << 10 // KiB

// TestFault19_Firehose: output without end and without a newline, read fast and
// not at all, leaves the agent small.
func TestFault19_Firehose(t *testing.T) {
	d := startDaemon(t, options{files: 1024})
	size := int64(2 << 30)
	if testing.Short() {
		size = 200 << 20
	}
	stalled, err := d.Processes().Start(context.Background(), nacre.ProcessSpec{Cmd: "cat", Args: []string{"/dev/zero"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stalled.Close() }()
	began := time.Now()
	s, err := d.Processes().Start(context.Background(), nacre.ProcessSpec{Cmd: "head", Args: []string{"-c", strconv.FormatInt(size, 10), "/dev/zero"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var n int64
	for {
		e, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n += int64(len(e.Stdout))
	}
	if n != size {
		t.Errorf("%d bytes came of %d", n, size)
	}
	peak := d.status(t, "VmHWM")
	t.Logf("%d MB in %v, peak %d KiB", n>>20, time.Since(began).Round(time.Millisecond), peak)
	if peak > rssBound {
		t.Errorf("the agent grew to %d KiB", peak)
	}
	if err := d.Processes().Signal(context.Background(), stalled.PID(), 9); err != nil {
		t.Error(err)
	}
}

// TestBigFilesStayFlat: memory does not follow a file's size, either way.
func TestBigFilesStayFlat(t *testing.T) {
	d := startDaemon(t, options{files: 1024})
	size := int64(1 << 30)
	if testing.Short() {
		size = 100 << 20
	}
	began := time.Now()
	_, err := d.Files().Write(context.Background(), "", d.dir+"/up", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	up := time.Since(began)
	began = time.Now()
	r, n, err := d.Files().Read(context.Background(), "", d.dir+"/up")
	if err != nil || n != size {
		t.Fatal(n, err)
	}
	got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 1<<20))
	if err != nil || got != size {
		t.Errorf("%d bytes of %d came: %v", got, size, err)
	}
	_ = r.Close()
	rate := func(took time.Duration) float64 { return float64(size>>20) / took.Seconds() }
	peak := d.status(t, "VmHWM")
	t.Logf("up %.0f MiB/s, down %.0f MiB/s, peak %d KiB", rate(up), rate(time.Since(began)), peak)
	if peak > rssBound {
		t.Errorf("the agent grew to %d KiB", peak)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestIdleIsSmall reports what an idle agent costs, and holds it roughly there.
func TestIdleIsSmall(t *testing.T) {
	d := startDaemon(t, options{files: 1024})
	d.run(t, "echo warm")
	anon := d.status(t, "RssAnon")
	t.Logf("idle: %d KiB resident, %d KiB of them its own, %d threads", d.status(t, "VmRSS"), anon, d.status(t, "Threads"))
	if anon > 7<<10 {
		t.Errorf("an idle agent holds %d KiB", anon)
	}
}

// TestInitReapsOrphans: nobody else will.
func TestInitReapsOrphans(t *testing.T) {
	d := startDaemon(t, options{pid1: true, files: 1024})
	if out, _ := d.run(t, `for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.1 & sleep 0.05 & true & ) ; done; echo $PPID`); out != "1\n" {
		t.Fatalf("the agent is not PID 1: %q", out)
	}
	children := fmt.Sprintf("/proc/%d/task/%d/children", d.pid, d.pid)
	for begin := time.Now(); ; {
		b, err := os.ReadFile(children)
		if err != nil {
			t.Skipf("needs a kernel that lists children: %v", err)
		}
		if len(strings.Fields(string(b))) == 0 {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("zombies are left: %s", b)
		}
		time.Sleep(10 * time.Millisecond) // a kernel table: there is nothing to wait on
	}
	// Its own children's results are not lost to that.
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if _, code := d.run(t, fmt.Sprintf("(true &); exit %d", i)); code != i {
				t.Errorf("process %d ended with %d", i, code)
			}
		})
	}
	wg.Wait()
}

// TestInitOutlivesSignals: a guest's root cannot end the guest's PID 1 by accident.
func TestInitOutlivesSignals(t *testing.T) {
	d := startDaemon(t, options{pid1: true, files: 1024})
	for sig := 1; sig < 65; sig++ {
		if out, code := d.run(t, fmt.Sprintf("kill -%d 1; echo still", sig)); out != "still\n" || code != 0 {
			t.Errorf("signal %d: %q, %d", sig, out, code)
		}
	}
	// What it catches is not ignored by what it starts.
	if _, code := d.run(t, "kill -TERM $$; exit 0"); code != -1 {
		t.Errorf("SIGTERM to a child: exit %d", code)
	}
	if err := d.Healthy(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestFault18_DescriptorsUsedUp: it says so, and works again when some are free.
func TestFault18_DescriptorsUsedUp(t *testing.T) {
	d := startDaemon(t, options{files: 64})
	if err := d.Healthy(context.Background()); err != nil { // leaves a connection to use
		t.Fatal(err)
	}
	var held []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", d.addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	refused := 0
	for begin := time.Now(); time.Since(begin) < 20*time.Second; { // accepting is another's work: the last descriptors go in a moment
		_, err := d.Processes().Start(context.Background(), nacre.ProcessSpec{Cmd: "true"})
		if nacre.IsCode(err, nacre.CodeExhausted) {
			refused++
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if refused == 0 {
		t.Error("a process was started without descriptors")
	}
	for _, c := range held {
		_ = c.Close()
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		s, err := d.Processes().Start(context.Background(), nacre.ProcessSpec{Cmd: "true"})
		if err == nil {
			_ = s.Close()
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("it did not recover: %v", err)
		}
	}
}
