package miosa

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

const (
	// maxOutput is what an exec keeps of each of its outputs, and allOutput what all
	// that run at once may keep; the command goes on.
	maxOutput = 16 << 20
	allOutput = 256 << 20
	// bothOutput is how much is said once more as one text.
	bothOutput = 1 << 20
	// maxExec bounds a command that its caller waits for.
	maxExec = 24 * time.Hour
	// exitTimedOut is what timeout(1) exits with.
	exitTimedOut = 124
)

// execSpec is the process that an exec asks for.
func (in execBody) execSpec() (nacre.ProcessSpec, error) {
	if strings.TrimSpace(in.Command) == "" {
		return nacre.ProcessSpec{}, nacre.Invalidf("command", "command is missing; it is a line for the shell")
	}
	if _, err := word("name", in.Name); err != nil {
		return nacre.ProcessSpec{}, err
	}
	spec := nacre.Shell(in.Command, in.Env)
	for _, dir := range []string{in.Cwd, in.WorkingDir, in.Dir} {
		if spec.Cwd == "" {
			spec.Cwd = dir
		}
	}
	timeout := in.Timeout
	if timeout == nil {
		timeout = in.TimeoutSec
	}
	var err error
	spec.Timeout, err = limit("timeout", timeout, maxExec)
	return spec, err
}

// limit reads seconds, with fractions; absent and 0 are none.
func limit(field string, s *float64, most time.Duration) (time.Duration, error) {
	switch {
	case s == nil || *s == 0:
		return 0, nil
	case !(*s > 0) || *s > most.Seconds():
		return 0, nacre.Invalidf(field, "%s must be between 0 and %d seconds", field, int(most.Seconds()))
	}
	return time.Duration(math.Ceil(*s * float64(time.Second))), nil
}

// readExec reads the body of an exec, and the process that it asks for.
func readExec(c *api.Call) (in execBody, spec nacre.ProcessSpec, err error) {
	if err = read(c, &in); err == nil {
		spec, err = in.execSpec()
	}
	return in, spec, err
}

// exec runs a command and answers when it has ended. A client that goes away takes
// the command with it: nobody would learn what became of it.
func (a *API) exec(c *api.Call) error {
	in, spec, err := readExec(c)
	if err != nil {
		return err
	}
	if in.Detached {
		return a.detach(c, in, spec)
	}
	return a.wait(c, in.Command, spec, nil)
}

// detach starts a command that nobody waits for.
func (a *API) detach(c *api.Call, in execBody, spec nacre.ProcessSpec) error {
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	j, err := a.jobs.start(c.R.Context(), g, startJob{name: in.Name, command: in.Command, spec: spec})
	if err != nil {
		return err
	}
	return one(c, http.StatusCreated, j.object())
}

// wait runs a command and answers with its result.
func (a *API) wait(c *api.Call, command string, spec nacre.ProcessSpec, stdin *string) error {
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	defer a.busy(c.R.Context(), g.id)()
	told := g.tellExec(command)
	r, err := g.run(c.R.Context(), spec, stdin)
	if err != nil {
		return err
	}
	told(r.ExitCode)
	return one(c, http.StatusOK, r)
}

// maxTold is how much of a command an event has.
const maxTold = 1 << 10

// tellExec tells that a command has begun; what it returns, that it has ended.
func (g *guest) tellExec(command string) func(code int) {
	begin := time.Now()
	id := "exec_" + random(6)
	if len(command) > maxTold {
		command = strings.ToValidUTF8(command[:maxTold], "") + "..."
	}
	g.api.emit(g, nacre.EventExecStarted, map[string]string{"exec": id, "command": command})
	return func(code int) {
		g.api.emit(g, nacre.EventExecCompleted, map[string]string{"exec": id, "exit_code": strconv.Itoa(code),
			"duration_ms": strconv.FormatInt(time.Since(begin).Milliseconds(), 10)})
	}
}

// run waits for a process and collects what it said. stdin nil is none.
func (g *guest) run(ctx context.Context, spec nacre.ProcessSpec, stdin *string) (execResult, error) {
	begin := time.Now()
	spec.Stdin = stdin != nil
	stream, err := g.start(ctx, spec)
	if err != nil {
		return execResult{}, err
	}
	defer stream.Close()
	defer g.killWith(ctx, stream.PID())()
	if stdin != nil {
		err := g.agent.Processes().Input(ctx, stream.PID(), []byte(*stdin))
		if err = errors.Join(err, g.agent.Processes().CloseInput(ctx, stream.PID())); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
			return execResult{}, went(err)
		}
	}
	stdout, stderr := &bounded{max: maxOutput, share: &g.api.output}, &bounded{max: maxOutput, share: &g.api.output}
	defer stdout.release()
	defer stderr.release()
	var out execResult
	for {
		e, err := stream.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if nacre.IsCode(err, nacre.CodeDeadline) && ctx.Err() == nil {
			out.ExitCode, out.TimedOut = exitTimedOut, true
			break
		}
		if err != nil {
			return out, went(err)
		}
		stdout.add(e.Stdout)
		stdout.add(e.Term)
		stderr.add(e.Stderr)
		if e.Exit != nil {
			out.ExitCode = exitCode(*e.Exit)
		}
	}
	out.Stdout, out.Stderr = stdout.String(), stderr.String()
	if out.Truncated = stdout.more || stderr.more; len(out.Stdout)+len(out.Stderr) <= bothOutput {
		out.Output = out.Stdout + out.Stderr
	}
	out.Success = out.ExitCode == 0
	out.DurationMS = time.Since(begin).Milliseconds()
	return out, nil
}

// killWith kills the process when ctx ends before done is called.
func (g *guest) killWith(ctx context.Context, pid int) (done func()) {
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = g.agent.Processes().Signal(ctx, pid, 9) // it may have ended
	})
	return func() {
		if !stop() {
			<-killed
		}
	}
}

// exitCode is the shell's word for a process that a signal ended.
func exitCode(e nacre.ProcessExit) int {
	if e.Exited || e.Code >= 0 {
		return e.Code
	}
	for name, n := range signals {
		if strings.Contains(e.Status, name) {
			return 128 + n
		}
	}
	return 128 + 9
}

// signals are those of signal(7), as Go words them.
var signals = map[string]int{
	"hangup": 1, "interrupt": 2, "quit": 3, "illegal": 4, "trace": 5, "abort": 6, "bus error": 7,
	"floating point": 8, "killed": 9, "user defined signal 1": 10, "segmentation": 11,
	"user defined signal 2": 12, "broken pipe": 13, "alarm": 14, "terminated": 15,
}

// execStream is exec with each line sent when it is complete.
func (a *API) execStream(c *api.Call) error {
	in, spec, err := readExec(c)
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	ctx := c.R.Context()
	defer a.busy(ctx, g.id)()
	begin := time.Now()
	stream, err := g.start(ctx, spec)
	if err != nil {
		return err
	}
	defer stream.Close()
	defer g.killWith(ctx, stream.PID())()
	s, err := startSSE(c)
	if err != nil {
		return nil // nobody is there
	}
	told := g.tellExec(in.Command)
	produce := func(ctx context.Context, give func(streamEvent) error) error {
		return streamLines(stream, begin, give)
	}
	err = follow(ctx, s, produce, func(e streamEvent) error {
		if e.ExitCode != nil {
			told(*e.ExitCode)
		}
		return s.send(e.Type, 0, e)
	})
	if err != nil && ctx.Err() == nil {
		return s.send("error", 0, streamEvent{Type: "error", Message: nacre.ErrorMessage(err)})
	}
	return nil
}
