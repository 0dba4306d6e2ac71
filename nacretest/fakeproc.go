package nacretest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nacrehq/nacre"
)

// fakeProcesses runs a handful of programs of its own: echo, cat, sleep, env,
// true, false, exit, and "sh -c" of those joined by ';' or '&&'.
type fakeProcesses struct{ a *fakeAgent }

type fakeProcess struct {
	guest *FakeGuest
	info  nacre.ProcessInfo
	term  bool

	unlogged, kept bool

	mu     sync.Mutex
	subs   map[*fakeStream]struct{}
	said   []nacre.ProcessEvent // what is kept: all
	exit   *nacre.ProcessExit
	ended  chan struct{}
	stdin  bytes.Buffer
	eof    bool
	input  chan struct{} // signalled when stdin changes
	killed string
	argv   []string  // the command that it is in; all of it before the first
	until  time.Time // when that ends, for sleep
}

func (p fakeProcesses) Start(ctx context.Context, spec nacre.ProcessSpec) (nacre.ProcessStream, error) {
	g, err := p.a.enter(ctx, "agent.start")
	if err != nil {
		return nil, err
	}
	if spec.User != "" && spec.User != "user" && spec.User != "root" {
		return nil, nacre.Errorf(nacre.CodeUnauthenticated, "invalid username: '%s'", spec.User)
	}
	if strings.HasPrefix(spec.Cwd, "/missing") {
		return nil, nacre.Invalidf("process.cwd", "cwd '%s' does not exist", spec.Cwd)
	}
	argv := append([]string{spec.Cmd}, spec.Args...)
	if i := len(argv) - 2; i > 0 && (strings.HasSuffix(argv[0], "sh")) && strings.HasSuffix(argv[i], "c") {
		argv = []string{"sh", "-c", argv[i+1]}
	} else if !fakePrograms[argv[0]] {
		return nil, nacre.Errorf(nacre.CodeNotFound, "executable %q was not found", argv[0])
	}
	g.mu.Lock()
	g.nextPID++
	env := map[string]string{}
	for k, v := range g.init.Env {
		env[k] = v
	}
	for k, v := range spec.Env {
		env[k] = v
	}
	proc := &fakeProcess{
		guest: g, term: spec.Term != nil, ended: make(chan struct{}), input: make(chan struct{}, 1), eof: !spec.Stdin && spec.Term == nil,
		info: nacre.ProcessInfo{PID: g.nextPID, Cmd: spec.Cmd, Args: spec.Args, Env: env, Cwd: spec.Cwd, Tag: spec.Tag},
		subs: map[*fakeStream]struct{}{}, unlogged: spec.Unlogged, kept: spec.Kept, argv: argv,
	}
	g.procs[proc.info.PID] = proc
	if !spec.Unlogged {
		g.logLocked(nacre.LogProcessStart, "", map[string]string{"pid": strconv.Itoa(proc.info.PID), "command": strings.Join(argv, " "), "tag": spec.Tag})
	}
	g.mu.Unlock()
	s := proc.follow(ctx)
	go proc.run(argv, spec.Timeout)
	return s, nil
}

var fakePrograms = map[string]bool{"echo": true, "cat": true, "sleep": true, "env": true, "true": true, "false": true, "exit": true}

// run is the process; it ends with the process.
func (p *fakeProcess) run(argv []string, timeout time.Duration) {
	if timeout > 0 {
		t := time.AfterFunc(timeout, func() { p.kill("signal: killed") })
		defer t.Stop()
	}
	code := 0
	if argv[0] == "sh" {
		code = p.script(argv[2])
	} else {
		code = p.command(argv)
	}
	p.finish(code)
}

func (p *fakeProcess) script(text string) int {
	code := 0
	for _, part := range strings.Split(text, ";") {
		for _, cmd := range strings.Split(part, "&&") {
			argv := strings.Fields(cmd)
			if len(argv) == 0 {
				continue
			}
			for i := range argv {
				argv[i] = os.Expand(strings.Trim(argv[i], `"'`), func(name string) string { return p.info.Env[name] })
			}
			if code = p.command(argv); code != 0 || argv[0] == "exit" {
				break
			}
		}
	}
	return code
}

func (p *fakeProcess) command(argv []string) int {
	p.mu.Lock()
	p.argv, p.until = argv, time.Time{}
	p.mu.Unlock()
	switch argv[0] {
	case "echo":
		p.emit(false, strings.Join(argv[1:], " ")+"\n")
	case "env":
		var names []string
		for k := range p.info.Env {
			names = append(names, k)
		}
		sort.Strings(names)
		for _, k := range names {
			p.emit(false, k+"="+p.info.Env[k]+"\n")
		}
	case "sleep":
		d := 0.0
		if len(argv) > 1 {
			d, _ = strconv.ParseFloat(argv[1], 64)
		}
		p.mu.Lock()
		p.until = time.Now().Add(time.Duration(d * float64(time.Second)))
		p.mu.Unlock()
		select {
		case <-time.After(time.Duration(d * float64(time.Second))):
		case <-p.ended:
		}
	case "cat":
		p.cat()
	case "true":
	case "false":
		return 1
	case "exit":
		if len(argv) > 1 {
			code, _ := strconv.Atoi(argv[1])
			return code
		}
	default:
		p.emit(true, "sh: "+argv[0]+": command not found\n")
		return 127
	}
	return 0
}

func (p *fakeProcess) cat() {
	for {
		p.mu.Lock()
		data := p.stdin.String()
		p.stdin.Reset()
		eof := p.eof
		p.mu.Unlock()
		if data != "" {
			p.emit(false, data)
		}
		if eof {
			return
		}
		select {
		case <-p.input:
		case <-p.ended:
			return
		}
	}
}

func (p *fakeProcess) emit(stderr bool, text string) {
	typ, ev := nacre.LogStdout, nacre.ProcessEvent{Stdout: []byte(text)}
	switch {
	case p.term:
		ev = nacre.ProcessEvent{Term: []byte(text)}
	case stderr:
		typ, ev = nacre.LogStderr, nacre.ProcessEvent{Stderr: []byte(text)}
	}
	p.mu.Lock()
	if p.exit != nil {
		p.mu.Unlock()
		return
	}
	if p.kept {
		p.said = append(p.said, ev)
	}
	for s := range p.subs {
		s.push(ev)
	}
	p.mu.Unlock()
	if !p.term && !p.unlogged {
		p.guest.Log(typ, strings.TrimSuffix(text, "\n"), map[string]string{"pid": strconv.Itoa(p.info.PID)})
	}
}

func (p *fakeProcess) finish(code int) {
	p.mu.Lock()
	if p.exit != nil {
		p.mu.Unlock()
		return
	}
	e := nacre.ProcessExit{Code: code, Exited: true, Status: fmt.Sprintf("exit status %d", code)}
	if p.killed != "" {
		e = nacre.ProcessExit{Code: -1, Status: p.killed}
	}
	if e.Code != 0 {
		e.Error = e.Status
	}
	p.exit = &e
	for s := range p.subs {
		s.push(nacre.ProcessEvent{Exit: &e})
	}
	close(p.ended)
	p.mu.Unlock()
	g := p.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.procs, p.info.PID)
	if !g.closed && !p.unlogged {
		g.logLocked(nacre.LogProcessEnd, "", map[string]string{"pid": strconv.Itoa(p.info.PID),
			"process_result": fmt.Sprintf(`{"exit_code":%d,"error":%q}`, e.Code, e.Error)})
	}
}

func (p *fakeProcess) kill(status string) {
	p.mu.Lock()
	p.killed = status
	p.mu.Unlock()
	p.finish(-1)
}

// gone ends the process without a word: its machine has ended.
func (p *fakeProcess) gone() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit == nil {
		p.exit = &nacre.ProcessExit{Code: -1}
		for s := range p.subs {
			s.fail(nacre.Errorf(nacre.CodeUnavailable, "the guest went away"))
		}
		close(p.ended)
	}
}

func (p *fakeProcess) follow(ctx context.Context) *fakeStream {
	s := &fakeStream{proc: p, more: make(chan struct{}, 1)}
	s.stop = context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subs[s] = struct{}{}
	return s
}

type fakeStream struct {
	proc *fakeProcess
	more chan struct{}
	stop func() bool
	busy atomic.Bool // somebody is in Next or Close

	mu     sync.Mutex
	events []nacre.ProcessEvent
	err    error
}

func (s *fakeStream) push(e nacre.ProcessEvent) {
	s.mu.Lock()
	s.events = append(s.events, e)
	if e.Exit != nil {
		s.err = io.EOF
	}
	s.mu.Unlock()
	s.signal()
}

func (s *fakeStream) fail(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	s.signal()
}

func (s *fakeStream) signal() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *fakeStream) PID() int { return s.proc.info.PID }

// alone holds callers to the contract, which another goroutine breaks without harm here
// and with harm on the wire.
func (s *fakeStream) alone() (done func()) {
	if !s.busy.CompareAndSwap(false, true) {
		panic("nacretest: a ProcessStream is used by several at once")
	}
	return func() { s.busy.Store(false) }
}

func (s *fakeStream) Next() (nacre.ProcessEvent, error) {
	defer s.alone()()
	for {
		s.mu.Lock()
		if len(s.events) > 0 {
			e := s.events[0]
			s.events = s.events[1:]
			s.mu.Unlock()
			return e, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return nacre.ProcessEvent{}, err
		}
		<-s.more
	}
}

func (s *fakeStream) Close() error {
	defer s.alone()()
	s.stop()
	s.proc.mu.Lock()
	delete(s.proc.subs, s)
	s.proc.mu.Unlock()
	s.fail(io.EOF)
	return nil
}

func (p fakeProcesses) find(ctx context.Context, pid int) (*fakeProcess, error) {
	g, err := p.a.enter(ctx, "agent.process")
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if proc := g.procs[pid]; proc != nil {
		return proc, nil
	}
	return nil, nacre.Errorf(nacre.CodeNotFound, "process with pid %d not found", pid)
}

func (p fakeProcesses) Connect(ctx context.Context, pid int) (nacre.ProcessStream, error) {
	proc, err := p.find(ctx, pid)
	if err != nil {
		return nil, err
	}
	return proc.follow(ctx), nil
}

func (p fakeProcesses) ConnectAfter(ctx context.Context, pid int, seen nacre.OutputSeen) (nacre.ProcessStream, error) {
	proc, err := p.find(ctx, pid)
	if err != nil {
		return nil, err
	}
	s := &fakeStream{proc: proc, more: make(chan struct{}, 1)}
	s.stop = context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })
	proc.mu.Lock()
	defer proc.mu.Unlock()
	kept := &nacre.KeptOutput{None: !proc.kept}
	events := []nacre.ProcessEvent{{Kept: kept}}
	for _, e := range proc.said {
		at := kept.To
		kept.To.Stdout += int64(len(e.Stdout))
		kept.To.Stderr += int64(len(e.Stderr))
		kept.To.Term += int64(len(e.Term))
		events = append(events, nacre.ProcessEvent{Stdout: e.Stdout[unseen(seen.Stdout, at.Stdout, e.Stdout):],
			Stderr: e.Stderr[unseen(seen.Stderr, at.Stderr, e.Stderr):], Term: e.Term[unseen(seen.Term, at.Term, e.Term):]})
	}
	kept.From = nacre.OutputSeen{Stdout: min(seen.Stdout, kept.To.Stdout), Stderr: min(seen.Stderr, kept.To.Stderr), Term: min(seen.Term, kept.To.Term)}
	s.events = events
	proc.subs[s] = struct{}{}
	return s, nil
}

// unseen is where what was not seen begins of a piece of output at a position.
func unseen(seen, at int64, piece []byte) int64 {
	return min(max(0, seen-at), int64(len(piece)))
}

func (p fakeProcesses) List(ctx context.Context) ([]nacre.ProcessInfo, error) {
	g, err := p.a.enter(ctx, "agent.processes")
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []nacre.ProcessInfo
	for _, proc := range g.procs {
		out = append(out, proc.info)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].PID < out[j].PID })
	return out, nil
}

func (p fakeProcesses) Signal(ctx context.Context, pid, signal int) error {
	proc, err := p.find(ctx, pid)
	if err != nil {
		return err
	}
	switch signal {
	case 9:
		proc.kill("signal: killed")
	case 15:
		proc.kill("signal: terminated")
	default:
		return nacre.Invalidf("signal", "signal %d is neither 9 nor 15", signal)
	}
	return nil
}

func (p fakeProcesses) Input(ctx context.Context, pid int, data []byte) error {
	return p.stdin(ctx, pid, func(proc *fakeProcess) { proc.stdin.Write(data) })
}

func (p fakeProcesses) CloseInput(ctx context.Context, pid int) error {
	return p.stdin(ctx, pid, func(proc *fakeProcess) { proc.eof = true })
}

func (p fakeProcesses) stdin(ctx context.Context, pid int, fn func(*fakeProcess)) error {
	proc, err := p.find(ctx, pid)
	if err != nil {
		return err
	}
	proc.mu.Lock()
	fn(proc)
	proc.mu.Unlock()
	select {
	case proc.input <- struct{}{}:
	default:
	}
	return nil
}

func (p fakeProcesses) Resize(ctx context.Context, pid int, _ nacre.TermSize) error {
	_, err := p.find(ctx, pid)
	return err
}
