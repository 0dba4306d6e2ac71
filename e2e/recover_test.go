package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
)

// TestFault08_ManyLeftovers: what a crash left by the hundred delays no request,
// and goes.
func TestFault08_ManyLeftovers(t *testing.T) {
	d := start(t, "--standby", "0")
	inst := d.instance()
	d.stop()
	begin := time.Now()
	d.launch()
	usual := d.answers().Sub(begin) // with nothing to be reclaimed
	d.stop()
	const n = 5000
	begin = time.Now()
	script := &strings.Builder{}
	for i := range n {
		fmt.Fprintf(script, "netns add nacre-%s-%d\n", inst, 1000+i)
	}
	for i := range n / 50 { // a slot has a link too, which takes the kernel far longer
		fmt.Fprintf(script, "link add nv%s-%s type veth peer name eth0 netns nacre-%s-%d\n", inst, base36(1000+i), inst, 1000+i)
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%.2000s", err, out)
	}
	for _, parent := range cgroupDirs(inst) {
		for i := range n / 50 {
			if err := os.Mkdir(filepath.Join(parent, fmt.Sprintf("m%016d", i)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d leftovers made in %s", n, time.Since(begin).Round(time.Millisecond))

	begin = time.Now()
	d.launch()
	took := d.answers().Sub(begin)
	if took > 5*time.Second {
		t.Errorf("the API answered only after %s; with nothing to be reclaimed after %s", took, usual)
	}
	sb, err := d.client().Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Run(t.Context(), "true"); err != nil {
		t.Fatal(err)
	}
	used := time.Since(begin)
	if err := sb.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.eventually(patience, func() error {
		waiting := 2 * len(cgroupDirs(inst)) // groups of the processes that wait for a start
		if now := d.traces(inst); now["netns"] > 17 || now["links"] > 17 || now["cgroups"] > waiting {
			return fmt.Errorf("not reclaimed: %s", now)
		}
		return nil
	})
	t.Logf("API after %s (%s with nothing to be reclaimed), a command answered after %s, all reclaimed after %s", took.Round(time.Millisecond),
		usual.Round(time.Millisecond), used.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
}

func base36(i int) string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	s := ""
	for ; i > 0; i /= 36 {
		s = digits[i%36:i%36+1] + s
	}
	return s
}

// TestFault10_PIDReuse: a process that got the number of a sandbox's is not
// touched, and the sandbox is known to have ended.
func TestFault10_PIDReuse(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	sbs := many(t, d.client(), 2)
	hs := d.handles()
	victim := hs[sbs[0].ID]
	d.kill9()
	if err := syscall.Kill(victim.Handle.State.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stranger := exec.Command("sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = stranger.Wait(); close(ended) }()
	t.Cleanup(func() { _ = stranger.Process.Kill(); <-ended })
	edit(t, victim.path, func(h map[string]any) {
		h["Handle"].(map[string]any)["State"].(map[string]any)["PID"] = stranger.Process.Pid
	})

	d.up()
	if o := d.outcome(sbs[0].ID); o.EndReason != "error" || o.Reason != "crash" || o.Detail == "" {
		t.Errorf("the sandbox whose process is gone: %+v", o)
	}
	if _, err := sbs[1].Run(t.Context(), "true"); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
	for _, sb := range sbs { // an end in every way there is
		if err := sb.Kill(t.Context()); err != nil && !errors.Is(err, client.ErrNotFound) {
			t.Error(err)
		}
	}
	d.cli("down")
	select {
	case <-ended:
		t.Error("a stranger's process was killed")
	default:
	}
}

// edit changes a file of JSON.
func edit(t *testing.T, path string, change func(map[string]any)) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	dec := json.NewDecoder(strings.NewReader(string(text)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	change(v)
	if text, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCrashReasons: a sandbox that ended by itself says so wherever one looks.
func TestCrashReasons(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	c := d.client()
	sbs := many(t, c, 4)
	killed, exited, whileDown, neighbour := sbs[0], sbs[1], sbs[2], sbs[3]
	for _, sb := range sbs {
		if _, err := sb.Run(t.Context(), "echo the last words"); err != nil {
			t.Fatal(err)
		}
		d.logged(sb.ID, "the last words\n") // what is killed from outside takes along what it told nobody
	}
	hs := d.handles()
	if err := syscall.Kill(hs[killed.ID].Handle.State.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// The guest's own root may end its first process.
	_, _ = exited.Run(t.Context(), "sudo kill -9 1")
	first := d.outcome(killed.ID)
	if first.Detail == "" || !strings.Contains(first.Detail, "signal 9") {
		t.Errorf("killed from outside: %+v", first)
	}

	if _, err := killed.Run(t.Context(), "true"); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("a command afterwards: %v", err)
	}
	a := d.preview(killed.ID, 8000, "/")
	var body struct {
		SandboxID, Message string
		Code               int
	}
	if err := a.decode(&body); err != nil || a.Status != 502 || body.SandboxID != killed.ID || body.Code != 502 || body.Message != "The sandbox was not found" {
		t.Errorf("a preview afterwards: %s", a)
	}

	d.kill9()
	if err := syscall.Kill(hs[whileDown.ID].Handle.State.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.up()
	for _, sb := range []*client.Sandbox{killed, exited, whileDown} {
		if o := d.outcome(sb.ID); o.EndReason != "error" || o.Reason != "crash" || o.Detail == "" {
			t.Errorf("%s: %+v", sb.ID, o)
		}
		if out := d.cli("logs", sb.ID); !strings.Contains(out, "the last words\n") {
			t.Errorf("logs of %s: %q", sb.ID, out)
		}
	}
	var runs []struct {
		ID        string
		EndReason string `json:"end_reason"`
		Reason    string
		Detail    string
	}
	if err := json.Unmarshal([]byte(d.cli("ps", "-a", "--json")), &runs); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(runs, func(r struct {
		ID        string
		EndReason string `json:"end_reason"`
		Reason    string
		Detail    string
	}) bool {
		return r.ID == killed.ID
	})
	if i < 0 || runs[i].EndReason != "error" || runs[i].Reason != "crash" || runs[i].Detail != first.Detail {
		t.Errorf("ps -a --json: %+v", runs)
	}
	if out := d.cli("ps", "-a"); !strings.Contains(out, "crash") {
		t.Errorf("ps -a: %s", out)
	}
	if _, err := neighbour.Run(t.Context(), "true"); err != nil {
		t.Errorf("the one beside: %v", err)
	}
	d.agree()
}

// TestSecondUpAnswersWithinTwoSeconds measures a start on a data directory that
// was used before. The bound leaves room for a host that is busy with tests; the
// figure is logged.
func TestSecondUpAnswersWithinTwoSeconds(t *testing.T) {
	d := start(t)
	inTime(t, 4*time.Second, "the API of a second start answered", func() time.Duration {
		d.stop()
		begin := time.Now()
		d.launch()
		return d.answers().Sub(begin)
	})
}
