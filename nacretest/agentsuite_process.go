package nacretest

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func agentRun(t *testing.T, b *agentBench) {
	r := b.sh(t, "echo out; echo err >&2; pwd")
	if r.out != "out\n"+b.Home+"\n" || r.err != "err\n" {
		t.Errorf("out %q, err %q", r.out, r.err)
	}
	if want := (nacre.ProcessExit{Code: 0, Exited: true, Status: "exit status 0"}); *r.exit != want {
		t.Errorf("exit %+v, want %+v", *r.exit, want)
	}
	r = b.sh(t, "exit 3")
	if want := (nacre.ProcessExit{Code: 3, Exited: true, Status: "exit status 3", Error: "exit status 3"}); *r.exit != want {
		t.Errorf("exit %+v, want %+v", *r.exit, want)
	}
	r = b.sh(t, "kill -9 $$")
	if want := (nacre.ProcessExit{Code: -1, Status: "signal: killed", Error: "signal: killed"}); *r.exit != want {
		t.Errorf("exit %+v, want %+v", *r.exit, want)
	}
	if r := b.sh(t, "cat; echo end"); r.out != "end\n" {
		t.Errorf("without Stdin a program must read an empty stdin: %q", r.out)
	}
}

func agentRunErrors(t *testing.T, b *agentBench) {
	for _, c := range []struct {
		what string
		spec nacre.ProcessSpec
		code nacre.Code
	}{
		{"unknown user", nacre.ProcessSpec{Cmd: "/bin/sh", User: "nobody-of-that-name"}, nacre.CodeUnauthenticated},
		{"missing cwd", nacre.ProcessSpec{Cmd: "/bin/sh", Cwd: "/missing/dir"}, nacre.CodeInvalid},
		{"missing program", nacre.ProcessSpec{Cmd: "/missing/program"}, nacre.CodeNotFound},
		{"missing program by name", nacre.ProcessSpec{Cmd: "missing-program"}, nacre.CodeNotFound},
		{"no program", nacre.ProcessSpec{}, nacre.CodeInvalid},
		{"bad variable", nacre.ProcessSpec{Cmd: "/bin/sh", Env: map[string]string{"A=B": "x"}}, nacre.CodeInvalid},
	} {
		_, err := b.Processes().Start(b.ctx, c.spec)
		wantAgentCode(t, c.what, err, c.code)
		if field := nacre.ErrorField(err); c.spec.Cwd != "" && field != "process.cwd" {
			t.Errorf("%s: the field is %q", c.what, field)
		}
	}
	_, err := b.Processes().Connect(b.ctx, 999999)
	wantAgentCode(t, "Connect to an unknown pid", err, nacre.CodeNotFound)
	wantAgentCode(t, "Signal to an unknown pid", b.Processes().Signal(b.ctx, 999999, 9), nacre.CodeNotFound)
	wantAgentCode(t, "Input to an unknown pid", b.Processes().Input(b.ctx, 999999, []byte("x")), nacre.CodeNotFound)
	wantAgentCode(t, "Resize of an unknown pid", b.Processes().Resize(b.ctx, 999999, nacre.TermSize{Cols: 1, Rows: 1}), nacre.CodeNotFound)
}

func agentEnvironment(t *testing.T, b *agentBench) {
	spec := shell(`echo "$FROM_INIT $BOTH $MINE $HOME $USER $LOGNAME"; pwd; id -un 2>/dev/null || true`)
	spec.Env = map[string]string{"BOTH": "call", "MINE": "yes"}
	spec.Cwd = b.Dir
	r := finishProcess(t, b.start(t, spec))
	if want := strings.Join([]string{"one call yes", b.Home, b.User, b.User}, " ") + "\n" + b.Dir + "\n"; !strings.HasPrefix(r.out, want) {
		t.Errorf("got %q, want it to begin with %q", r.out, want)
	}
	spec = shell("id -u")
	spec.User = "root"
	if r := finishProcess(t, b.start(t, spec)); r.out != "0\n" {
		t.Errorf("root's uid is %q", r.out)
	}
	if r := b.sh(t, "id -u"); r.out == "0\n" {
		t.Error("the default user runs as root")
	}
}

func agentInput(t *testing.T, b *agentBench) {
	p := b.Processes()
	s := b.start(t, nacre.ProcessSpec{Cmd: "cat", Stdin: true})
	mustAgent(t, p.Input(b.ctx, s.PID(), nil))
	mustAgent(t, p.Input(b.ctx, s.PID(), []byte("no newline")))
	readUntil(t, s, "no newline")
	mustAgent(t, p.CloseInput(b.ctx, s.PID()))
	if r := finishProcess(t, s); r.exit.Code != 0 {
		t.Errorf("cat after its input's end: %+v", *r.exit)
	}
}

func agentTerminal(t *testing.T, b *agentBench) {
	p := b.Processes()
	s := b.start(t, nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-i"}, Term: &nacre.TermSize{Cols: 83, Rows: 21}, Tag: "term"})
	mustAgent(t, p.Input(b.ctx, s.PID(), []byte("stty size\n")))
	readUntil(t, s, "21 83")
	mustAgent(t, p.Resize(b.ctx, s.PID(), nacre.TermSize{Cols: 100, Rows: 30}))
	mustAgent(t, p.Input(b.ctx, s.PID(), []byte("stty size\n")))
	readUntil(t, s, "30 100")
	list, err := p.List(b.ctx)
	mustAgent(t, err)
	if len(list) != 1 || list[0].PID != s.PID() || list[0].Cmd != "/bin/sh" || list[0].Tag != "term" {
		t.Errorf("a terminal must be listed: %+v", list)
	}
	// A lost terminal goes on, and can be taken up again.
	mustAgent(t, s.Close())
	again, err := p.Connect(b.ctx, s.PID())
	mustAgent(t, err)
	t.Cleanup(func() { _ = again.Close() })
	mustAgent(t, p.Input(b.ctx, s.PID(), []byte("exit\n")))
	if r := finishProcess(t, again); r.exit.Code != 0 {
		t.Errorf("exit of the shell: %+v", *r.exit)
	}
}

// agentConnectAfter: who was cut off gets what it missed, each byte once, and learns
// where it begins; what is not kept is told to be.
func agentConnectAfter(t *testing.T, b *agentBench) {
	p := b.Processes()
	s := b.start(t, nacre.ProcessSpec{Cmd: "cat", Stdin: true, Kept: true})
	write := func(text string) {
		t.Helper()
		mustAgent(t, p.Input(b.ctx, s.PID(), []byte(text)))
	}
	after := func(seen int64, want nacre.KeptOutput) nacre.ProcessStream {
		t.Helper()
		again, err := p.ConnectAfter(b.ctx, s.PID(), nacre.OutputSeen{Stdout: seen})
		mustAgent(t, err)
		t.Cleanup(func() { _ = again.Close() })
		e, err := again.Next()
		mustAgent(t, err)
		if e.Kept == nil || *e.Kept != want {
			t.Errorf("after %d: %+v, want %+v", seen, e.Kept, want)
		}
		return again
	}
	write("first ")
	readUntil(t, s, "first ")
	mustAgent(t, s.Close())
	watch, err := p.Connect(b.ctx, s.PID())
	mustAgent(t, err)
	write("second ")
	readUntil(t, watch, "second ")
	mustAgent(t, watch.Close())
	to := nacre.OutputSeen{Stdout: 13}
	one := after(6, nacre.KeptOutput{From: nacre.OutputSeen{Stdout: 6}, To: to})
	if got := readUntil(t, one, "second "); got != "second " {
		t.Errorf("after what was seen came %q", got)
	}
	mustAgent(t, one.Close())
	half := after(8, nacre.KeptOutput{From: nacre.OutputSeen{Stdout: 8}, To: to})
	if got := readUntil(t, half, "cond "); got != "cond " {
		t.Errorf("after the half of a piece came %q", got)
	}
	mustAgent(t, half.Close())
	beyond := after(99, nacre.KeptOutput{From: to, To: to})
	write("third")
	if got := readUntil(t, beyond, "third"); got != "third" {
		t.Errorf("after more than there is came %q", got)
	}
	mustAgent(t, p.CloseInput(b.ctx, s.PID()))
	if r := finishProcess(t, beyond); r.exit.Code != 0 {
		t.Errorf("the exit: %+v", *r.exit)
	}

	loose := b.start(t, nacre.ProcessSpec{Cmd: "cat", Stdin: true})
	again, err := p.ConnectAfter(b.ctx, loose.PID(), nacre.OutputSeen{})
	mustAgent(t, err)
	if e, err := again.Next(); err != nil || e.Kept == nil || !e.Kept.None {
		t.Errorf("of a process that is not kept: %+v, %v", e, err)
	}
	mustAgent(t, again.Close())
	mustAgent(t, p.Signal(b.ctx, loose.PID(), 9))
	_, err = p.ConnectAfter(b.ctx, 999999, nacre.OutputSeen{})
	wantAgentCode(t, "ConnectAfter to an unknown pid", err, nacre.CodeNotFound)
}

func agentSignal(t *testing.T, b *agentBench) {
	p := b.Processes()
	s := b.start(t, shell("trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.05; done"))
	readUntil(t, s, "ready")
	mustAgent(t, p.Signal(b.ctx, s.PID(), 15))
	if r := finishProcess(t, s); !strings.Contains(r.out, "got it") || r.exit.Code != 7 {
		t.Errorf("after SIGTERM: %q %+v", r.out, *r.exit)
	}
	// The whole group goes, and the answer means that it is gone.
	s = b.start(t, shell("sleep 1000 & echo $!; wait"))
	e, err := s.Next()
	mustAgent(t, err)
	child := strings.TrimSpace(string(e.Stdout))
	mustAgent(t, p.Signal(b.ctx, s.PID(), 9))
	if r := b.sh(t, "kill -0 "+strconv.Itoa(s.PID())); r.exit.Code == 0 {
		t.Error("the killed process still exists")
	}
	if r := finishProcess(t, s); r.exit.Status != "signal: killed" || r.exit.Code != -1 {
		t.Errorf("after SIGKILL: %+v", *r.exit)
	}
	// Its child may be a zombie for a while: who reaps it is PID 1's matter.
	if r := b.sh(t, "sleep 0.1; ! kill -0 "+child+" 2>/dev/null || grep -q 'State:.Z' /proc/"+child+"/status"); r.exit.Code != 0 {
		t.Error("the killed process's child still runs")
	}
	wantAgentCode(t, "Signal to an ended process", p.Signal(b.ctx, s.PID(), 9), nacre.CodeNotFound)
	if err := p.Signal(b.ctx, 1, 2); !nacre.IsCode(err, nacre.CodeInvalid) {
		t.Errorf("signal 2: %v", err)
	}
}

func agentConnect(t *testing.T, b *agentBench) {
	p := b.Processes()
	s := b.start(t, nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", "echo before; read x; echo after; exit 4"}, Stdin: true})
	readUntil(t, s, "before")
	mustAgent(t, s.Close())
	first, err := p.Connect(b.ctx, s.PID())
	mustAgent(t, err)
	t.Cleanup(func() { _ = first.Close() })
	second, err := p.Connect(b.ctx, s.PID())
	mustAgent(t, err)
	t.Cleanup(func() { _ = second.Close() })
	if first.PID() != s.PID() {
		t.Errorf("pid %d, want %d", first.PID(), s.PID())
	}
	mustAgent(t, p.Input(b.ctx, s.PID(), []byte("\n")))
	results := make(chan agentResult)
	go func() { results <- finishProcess(t, second) }()
	for _, r := range []agentResult{finishProcess(t, first), <-results} {
		if r.out != "after\n" || r.exit.Code != 4 {
			t.Errorf("a connected stream got %q and %+v", r.out, *r.exit)
		}
	}
	late, err := p.Connect(b.ctx, s.PID())
	mustAgent(t, err)
	t.Cleanup(func() { _ = late.Close() })
	if r := finishProcess(t, late); r.out != "" || r.exit.Code != 4 {
		t.Errorf("connecting just after the end got %q and %+v", r.out, *r.exit)
	}
	list, err := p.List(b.ctx)
	mustAgent(t, err)
	if len(list) != 0 {
		t.Errorf("an ended process is listed: %+v", list)
	}
}

func agentTimeout(t *testing.T, b *agentBench) {
	spec := shell("echo on; sleep 1000")
	spec.Timeout = 2 * time.Second // a busy host needs a while for the echo
	s := b.start(t, spec)
	readUntil(t, s, "on")
	_, err := s.Next()
	wantAgentCode(t, "Next after the timeout", err, nacre.CodeDeadline)
	_, err = s.Next()
	wantAgentCode(t, "Next again", err, nacre.CodeDeadline)
	if r := b.sh(t, "kill -0 "+strconv.Itoa(s.PID())); r.exit.Code == 0 {
		t.Error("the process outlived its timeout")
	}
}

func agentBackgroundJob(t *testing.T, b *agentBench) {
	// It holds stdout until the command has ended: were it waited for, nothing would end.
	r := b.sh(t, "(until [ -e "+b.Dir+"/ended ]; do sleep 0.05; done; echo late; echo survived > "+b.Dir+"/job) & echo now")
	if r.out != "now\n" || r.exit.Code != 0 {
		t.Errorf("got %q, %+v", r.out, *r.exit)
	}
	// The job writes to nobody, and must not die of it.
	if r := b.sh(t, "echo > "+b.Dir+"/ended; until [ -s "+b.Dir+"/job ]; do sleep 0.05; done; cat "+b.Dir+"/job"); r.out != "survived\n" {
		t.Errorf("the background job left %q", r.out)
	}
}

func agentMuchOutput(t *testing.T, b *agentBench) {
	s := b.start(t, shell("head -c 20000000 /dev/zero; echo done >&2"))
	var n int
	for {
		e, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		mustAgent(t, err)
		n += len(e.Stdout)
	}
	if n != 20_000_000 {
		t.Errorf("%d bytes came, want all 20000000", n)
	}
}

func agentSlowReader(t *testing.T, b *agentBench) {
	s := b.start(t, shell("i=0; while [ $i -lt 400 ]; do head -c 100000 /dev/zero; i=$((i+1)); echo $i > "+b.Dir+"/count; done"))
	_, err := s.Next()
	mustAgent(t, err)
	count := func() int {
		r := b.sh(t, "sleep 0.3; cat "+b.Dir+"/count")
		n, _ := strconv.Atoi(strings.TrimSpace(r.out))
		return n
	}
	last := -1
	for n := count(); n != last; n = count() { // until it stands still
		last = n
	}
	if last >= 400 {
		t.Fatal("the process wrote 40 MB though nobody read them")
	}
	mustAgent(t, s.Close()) // nobody listens any more: it goes on
	if r := b.sh(t, "until [ \"$(cat "+b.Dir+"/count)\" = 400 ]; do sleep 0.05; done"); r.exit.Code != 0 {
		t.Error("the process did not go on after its reader left")
	}
}

func agentContext(t *testing.T, b *agentBench) {
	ctx, cancel := context.WithCancel(b.ctx)
	s, err := b.Processes().Start(ctx, shell("echo on; sleep 1000"))
	mustAgent(t, err)
	readUntil(t, s, "on")
	cancel()
	if _, err := s.Next(); !errors.Is(err, context.Canceled) {
		t.Errorf("Next after cancel: %v", err)
	}
	if r := b.sh(t, "kill -0 "+strconv.Itoa(s.PID())); r.exit.Code != 0 {
		t.Error("the end of the caller's context ended the process")
	}
	mustAgent(t, b.Processes().Signal(b.ctx, s.PID(), 9))
	_, err = b.Files().Stat(ctx, "", b.Dir)
	wantAgentCode(t, "Stat with an ended context", err, nacre.CodeUnavailable)
	past, cancel := context.WithDeadline(b.ctx, time.Now().Add(-time.Second))
	defer cancel()
	_, err = b.Files().Stat(past, "", b.Dir)
	wantAgentCode(t, "Stat after its deadline", err, nacre.CodeDeadline)
}
