package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/clientfile"
	"github.com/nacrehq/nacre/server"
)

// fillPause is longer than a server pauses between the standbys that it makes.
const fillPause = 6 * time.Second

// daemon is a server under measurement, on a data directory of its own.
type daemon struct {
	dir  string
	bin  string
	args []string
	file clientfile.File

	standbys int // how many the server keeps, once it is known

	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	output bytes.Buffer  // of the server; complete once ended
}

// withStandbys returns the server that most benchmarks share.
func (b *bench) withStandbys(ctx context.Context) (*daemon, error) {
	if b.shared == nil {
		d, err := b.start(ctx)
		if err != nil {
			return nil, err
		}
		b.shared = d
	}
	return b.shared, nil
}

// start runs a server and returns when it is ready. Limits of 1 GiB let a hundred
// sandboxes fit a host of 16 GiB; they cost nothing while they are not used.
func (b *bench) start(ctx context.Context, args ...string) (*daemon, error) {
	dir, err := os.MkdirTemp("", "nacre-bench-")
	if err != nil {
		return nil, err
	}
	d := &daemon{dir: dir, bin: b.nacre}
	d.args = append([]string{"up", "--data-dir", dir, "--cache-dir", b.cache, "--install=false", "--log-level", "warn",
		"--memory-mib", "1024"}, args...)
	for _, flag := range []string{"--http", "--https"} {
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		d.args = append(d.args, flag, addr)
	}
	if err := d.up(ctx); err != nil {
		d.destroy()
		return nil, err
	}
	return d, nil
}

// up starts the process and returns when the server answers.
func (d *daemon) up(ctx context.Context) error {
	d.output.Reset()
	d.cmd = exec.Command(d.bin, d.args...)
	d.cmd.Stdout, d.cmd.Stderr = &d.output, &d.output
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is ours
	if err := d.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	d.ended = ended
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // the first run builds the base image
	defer cancel()
	go func() { _ = d.cmd.Wait(); close(ended); cancel() }()
	if _, err := server.WaitReady(ctx, d.dir); err != nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		return fmt.Errorf("the server did not start: %w\n%s", err, d.output.String())
	}
	var err error
	d.file, err = clientfile.Read(d.dir)
	return err
}

// stop ends the server; its sandboxes go on.
func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	<-d.ended
}

// destroy leaves nothing of the server and its sandboxes.
func (d *daemon) destroy() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, d.bin, "down", "--data-dir", d.dir).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "nacre down: %v\n%s", err, out)
	}
	if d.ended != nil {
		<-d.ended
	}
	if err := os.RemoveAll(d.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// env is what the SDKs need.
func (d *daemon) env() []string {
	return append(os.Environ(), "MORU_API_KEY="+d.file.APIKey, "MORU_API_URL="+d.file.APIURL, "MORU_SANDBOX_URL="+d.file.APIURL)
}

// settle returns when as many standbys wait as the server keeps, and a moment of
// quiet after: a create is measured beside nothing else. The first call waits for
// the pool to be full, which is when it no longer grows.
func (d *daemon) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for grew, most := time.Now(), 0; ; {
		s, err := server.WaitReady(ctx, d.dir)
		if err != nil {
			return err
		}
		have := 0
		if s.Capacity != nil {
			have = s.Capacity.Standbys
		}
		if have > most {
			grew, most = time.Now(), have
		}
		if d.standbys == 0 && have > 0 && time.Since(grew) > fillPause {
			d.standbys = have
		}
		if d.standbys > 0 && have >= d.standbys {
			return pause(ctx, 300*time.Millisecond)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("the standbys did not come back: %w", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// box is a sandbox, as the API's answer describes it.
type box struct {
	ID    string `json:"sandboxID"`
	Token string `json:"envdAccessToken"`
}

// call makes one request of the API; out may be nil.
func (d *daemon) call(ctx context.Context, method, path, body string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, d.file.APIURL+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", d.file.APIKey)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text.String())
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text.Bytes(), out)
}

func (d *daemon) create(ctx context.Context) (s box, err error) {
	err = d.call(ctx, "POST", "/sandboxes", `{"templateID":"base","timeout":900,"secure":true}`, &s)
	return s, err
}

func (d *daemon) kill(ctx context.Context, s box) error {
	return d.call(ctx, "DELETE", "/sandboxes/"+s.ID, "", nil)
}

// with runs fn with a sandbox, which ends afterwards.
func (d *daemon) with(ctx context.Context, fn func(box) error) error {
	s, err := d.create(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = d.kill(context.WithoutCancel(ctx), s) }()
	return fn(s)
}

// handle is the part of the node's handles that leads past the server: the
// guest's address and its process on this host.
type handle struct {
	Slot   nacre.Slot
	Spec   *nacre.StartSpec
	Handle struct{ State struct{ PID int } }
}

func (d *daemon) handle(s box) (handle, error) {
	dirs, err := filepath.Glob("/run/nacre/*")
	if err != nil {
		return handle{}, err
	}
	for _, dir := range append(dirs, filepath.Join(d.dir, "node", "handles")) {
		files, _ := filepath.Glob(dir + "/*.json")
		for _, f := range files {
			var h handle
			data, err := os.ReadFile(f)
			if err == nil && json.Unmarshal(data, &h) == nil && h.Spec != nil && string(h.Spec.Sandbox) == s.ID {
				return h, nil
			}
		}
	}
	return handle{}, fmt.Errorf("no handle of sandbox %s was found", s.ID)
}

// rss watches the resident memory of a process until the returned function is
// called, which tells how much it was before and at most, in MiB.
func rss(pid int) func() (before, peak float64) {
	first := resident(pid)
	most := first
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-quit:
				return
			case <-time.After(20 * time.Millisecond):
				most = max(most, resident(pid))
			}
		}
	})
	return func() (float64, float64) { close(quit); wg.Wait(); return first, most }
}

func resident(pid int) float64 { return kib("/proc/"+strconv.Itoa(pid)+"/status", "VmRSS:") / 1024 }

// kib reads a line "<name> 123 kB".
func kib(path, name string) float64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), name); ok {
			v, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return v
		}
	}
	return 0
}
