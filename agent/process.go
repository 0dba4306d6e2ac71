package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd/processpb"
	"golang.org/x/sys/unix"
)

// outputGrace is how long after a process's end its output is awaited while
// something else (a background job) still holds its pipes open.
const outputGrace = 200 * time.Millisecond

// process is one program that the agent started.
type process struct {
	table   *processTable
	logs    *logRing // the guest's, or nobody's
	spec    processSpec
	pid     int
	started time.Time
	out     broadcast
	input   *processInput // nil: stdin is /dev/null
	tty     *terminal     // nil without one
	pumps   []*pump

	mu       sync.Mutex
	waited   bool // the pid may belong to somebody else by now
	status   syscall.WaitStatus
	reaped   chan struct{} // closed with waited
	done     chan struct{} // closed when all output was delivered and end is set
	end      *processpb.ProcessEvent_EndEvent
	timedOut atomic.Bool
	deadline *time.Timer
}

// processSpec is a resolved request.
type processSpec struct {
	config  *processpb.ProcessConfig // as it was asked for
	tag     *string
	path    string // of the program
	argv    []string
	env     []string
	cwd     string
	acc     account
	stdin   bool
	term    *nacre.TermSize
	timeout time.Duration

	unlogged, kept bool
}

func (p *process) isReaped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waited
}

// reapedWith notes the end. The rest (output, end event) is finish's.
func (p *process) reapedWith(ws syscall.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waited {
		return
	}
	p.waited, p.status = true, ws
	close(p.reaped)
}

// signal reaches the whole group. A process that was reaped is CodeNotFound,
// and its number is not touched: it may be another's.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waited {
		return nacre.Errorf(nacre.CodeNotFound, "process with pid %d not found", p.pid)
	}
	err := killGroup(p.pid, sig)
	if errors.Is(err, unix.ESRCH) {
		return nacre.Errorf(nacre.CodeNotFound, "process with pid %d not found", p.pid)
	}
	return err
}

// finish waits for the end, sees the output out, and tells everybody.
func (p *process) finish() {
	<-p.reaped
	if p.deadline != nil {
		p.deadline.Stop()
	}
	for _, pm := range p.pumps {
		pm.endAfter(outputGrace)
	}
	for _, pm := range p.pumps {
		<-pm.drained
	}
	if p.input != nil {
		p.input.close()
	}
	if p.tty != nil {
		p.tty.forget()
	}
	p.end = endEvent(p.status)
	p.logs.processEnd(p)
	if p.spec.kept {
		p.table.kept.Add(-1)
	}
	close(p.done)
	p.table.retire(p)
}

// kill ends the process because its time is over.
func (p *process) expire() {
	p.mu.Lock()
	ended := p.waited
	if !ended {
		p.timedOut.Store(true)
	}
	p.mu.Unlock()
	if !ended {
		_ = p.signal(unix.SIGKILL)
	}
}

// endEvent words a status the way clients parse it.
func endEvent(ws syscall.WaitStatus) *processpb.ProcessEvent_EndEvent {
	e := &processpb.ProcessEvent_EndEvent{}
	switch {
	case ws.Signaled():
		e.ExitCode = -1
		e.Status = "signal: " + ws.Signal().String()
		if ws.CoreDump() {
			e.Status += " (core dumped)"
		}
		e.Error = &e.Status
	default:
		e.ExitCode, e.Exited = int32(ws.ExitStatus()), true
		e.Status = "exit status " + strconv.Itoa(ws.ExitStatus())
		if ws.ExitStatus() != 0 {
			e.Error = &e.Status
		}
	}
	return e
}

// processResult is the field that the clients' log view reads.
func processResult(e *processpb.ProcessEvent_EndEvent) string {
	b, _ := json.Marshal(struct {
		ExitCode int32  `json:"exit_code"`
		Error    string `json:"error"`
	}{e.GetExitCode(), e.GetError()})
	return string(b)
}

// start runs the program. first is subscribed before anything was read, so it
// sees every byte.
func (t *processTable) start(spec processSpec, first *subscriber) (*process, error) {
	p := &process{
		table: t, logs: t.logs, spec: spec, started: time.Now(),
		reaped: make(chan struct{}), done: make(chan struct{}),
	}
	if spec.unlogged {
		p.logs = newLogRing(0)
	}
	if spec.kept {
		p.out.tail = &outputTail{room: t.tailRoom}
	}
	files, err := openStdio(p)
	if err != nil {
		return nil, startError(err, spec)
	}
	defer files.closeChild()
	attr := &syscall.ProcAttr{
		Dir:   spec.cwd,
		Env:   spec.env,
		Files: files.child,
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: credential(spec.acc)},
	}
	if spec.term != nil {
		attr.Sys.Setctty, attr.Sys.Ctty = true, 0
	}
	err = t.fork(p, func() (int, error) { return syscall.ForkExec(spec.path, spec.argv, attr) })
	if err != nil {
		files.closeParent()
		return nil, startError(err, spec)
	}
	if spec.kept {
		t.kept.Add(1)
	}
	p.logs.processStart(p)
	if first != nil {
		p.out.add(first)
	}
	if spec.timeout > 0 {
		p.deadline = time.AfterFunc(spec.timeout, p.expire)
	}
	for _, pm := range p.pumps {
		go pm.run()
	}
	go p.finish()
	return p, nil
}

// credential is nil when the agent may not, and need not, change users.
func credential(acc account) *syscall.Credential {
	if os.Getuid() != 0 && os.Getuid() == int(acc.uid) {
		return nil
	}
	return &syscall.Credential{Uid: acc.uid, Gid: acc.gid, Groups: acc.groups}
}

// startError says in the client's words why a program did not start.
func startError(err error, spec processSpec) error {
	cmd := validText(spec.argv[0])
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nacre.Wrap(nacre.CodeNotFound, err, fmt.Sprintf("command '%s' not found", cmd))
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nacre.Wrap(nacre.CodeForbidden, err, fmt.Sprintf("permission denied: user '%s' may not run '%s' in '%s'", validText(spec.acc.name), cmd, validText(spec.cwd)))
	case errors.Is(err, unix.E2BIG):
		return nacre.Wrap(nacre.CodeInvalid, err, "the arguments and the environment are too large for one process")
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.ENAMETOOLONG):
		return nacre.Wrap(nacre.CodeInvalid, err, fmt.Sprintf("'%s' cannot be run: %v", cmd, err))
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return nacre.Wrap(nacre.CodeExhausted, err, fmt.Sprintf("the sandbox has no room for another process (%v): end some of its own, or try again", err))
	}
	return nacre.Wrap(nacre.CodeInternal, err, fmt.Sprintf("'%s' could not be started: %v", cmd, err))
}

// lookPath finds a program as the process itself would, in its own PATH.
func lookPath(cmd, cwd, pathVar string) string {
	if strings.Contains(cmd, "/") {
		return cmd
	}
	for dir := range strings.SplitSeq(pathVar, ":") {
		if dir == "" {
			dir = "."
		}
		if dir[0] != '/' {
			dir = cwd + "/" + dir
		}
		full := dir + "/" + cmd
		if fi, err := os.Stat(full); err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o111 != 0 {
			return full
		}
	}
	return ""
}

// processInput is a process's stdin or terminal, written to by one at a time.
type processInput struct {
	turn chan struct{} // holds one token
	f    *os.File
}

func newProcessInput(f *os.File) *processInput {
	in := &processInput{turn: make(chan struct{}, 1), f: f}
	in.turn <- struct{}{}
	return in
}

// write ends when the process took all, or with ctx: a process that does not
// read holds nobody for ever.
func (in *processInput) write(ctx context.Context, data []byte) error {
	select {
	case <-in.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { in.turn <- struct{}{} }()
	if err := ctx.Err(); err != nil {
		return err
	}
	_ = in.f.SetWriteDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = in.f.SetWriteDeadline(time.Unix(1, 0)) })
	_, err := in.f.Write(data)
	if !stop() && err != nil {
		return ctx.Err()
	}
	return err
}

func (in *processInput) close() { _ = in.f.Close() }
