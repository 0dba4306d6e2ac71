package agent

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
	pb "github.com/nacrehq/nacre/agent/envd/processpb"
	"golang.org/x/sys/unix"
)

// defaultPath is what a login gives every user.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// killWait is how long a kill waits until the process can no longer be seen.
const killWait = 2 * time.Second

// processService is the RPC side of the process table.
type processService struct{ a *Agent }

func (s *processService) List(_ context.Context, _ *connect.Request[pb.ListRequest]) (*connect.Response[pb.ListResponse], error) {
	out := &pb.ListResponse{}
	for _, p := range s.a.procs.running() {
		out.Processes = append(out.Processes, &pb.ProcessInfo{Config: p.spec.config, Pid: uint32(p.pid), Tag: p.spec.tag})
	}
	return connect.NewResponse(out), nil
}

func (s *processService) Start(ctx context.Context, req *connect.Request[pb.StartRequest], stream *connect.ServerStream[pb.StartResponse]) error {
	acc, err := s.a.rpcUser(req.Header())
	if err != nil {
		return err
	}
	spec, err := s.a.processSpec(acc, req.Msg)
	if err != nil {
		return rpcError(err)
	}
	spec.timeout = requestTimeout(ctx)
	spec.unlogged = req.Header().Get(envd.HeaderUnlogged) != ""
	spec.kept = req.Header().Get(envd.HeaderKept) != ""
	sub := newSubscriber()
	p, err := s.a.procs.start(spec, sub)
	if err != nil {
		return rpcError(err)
	}
	s.a.threads.processStarted()
	return p.follow(ctx, sub, 0, keepaliveInterval(req.Header()), func(e *pb.ProcessEvent) error {
		return stream.Send(&pb.StartResponse{Event: e})
	})
}

func (s *processService) Connect(ctx context.Context, req *connect.Request[pb.ConnectRequest], stream *connect.ServerStream[pb.ConnectResponse]) error {
	p, err := s.selected(req.Msg.GetProcess(), true)
	if err != nil {
		return err
	}
	sub := newSubscriber()
	added := false
	if seen, ok := envd.ParseSeen(req.Header().Get(envd.HeaderSeen)); ok {
		var k nacre.KeptOutput
		if k, added = p.out.addAfter(sub, seen); added {
			stream.ResponseHeader().Set(envd.HeaderOutput, envd.FormatSeen(k.From)+","+envd.FormatSeen(k.To))
		}
	}
	if !added {
		p.out.add(sub)
	}
	return p.follow(ctx, sub, requestTimeout(ctx), keepaliveInterval(req.Header()), func(e *pb.ProcessEvent) error {
		return stream.Send(&pb.ConnectResponse{Event: e})
	})
}

// follow passes a process's events on until its end, until the client goes
// away, or until limit (0 = none). Only the process's own time, not the
// client's going, ends the process.
func (p *process) follow(ctx context.Context, sub *subscriber, limit, silence time.Duration, send func(*pb.ProcessEvent) error) error {
	defer p.out.remove(sub)
	start := &pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: &pb.ProcessEvent_StartEvent{Pid: uint32(p.pid)}}}
	if err := send(start); err != nil {
		return err
	}
	keepalive := time.NewTicker(silence)
	defer keepalive.Stop()
	var over <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	events := newDataEvents()
	for _, c := range sub.kept {
		if err := send(events.of(c.kind, c.data)); err != nil {
			return err
		}
	}
	sub.kept = nil
	for {
		select {
		case c := <-sub.ch:
			err := send(events.of(c.kind, c.data))
			c.done()
			if err != nil {
				return err
			}
			keepalive.Reset(silence)
		case <-p.done:
			if p.timedOut.Load() {
				return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the process was killed because its time was over"))
			}
			lastMessage(ctx)
			return send(&pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: p.end}})
		case <-keepalive.C:
			if err := send(&pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}); err != nil {
				return err
			}
		case <-over:
			return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the time to follow the process is over"))
		case <-ctx.Done():
			return connect.NewError(connect.CodeCanceled, ctx.Err())
		}
	}
}

// dataEvents makes events without allocating one for each chunk.
type dataEvents struct {
	event  pb.ProcessEvent
	stdout pb.ProcessEvent_DataEvent_Stdout
	stderr pb.ProcessEvent_DataEvent_Stderr
	term   pb.ProcessEvent_DataEvent_Pty
	data   *pb.ProcessEvent_DataEvent
}

func newDataEvents() *dataEvents {
	d := &dataEvents{data: &pb.ProcessEvent_DataEvent{}}
	d.event.Event = &pb.ProcessEvent_Data{Data: d.data}
	return d
}

func (d *dataEvents) of(kind streamKind, data []byte) *pb.ProcessEvent {
	switch kind {
	case streamStdout:
		d.stdout.Stdout = data
		d.data.Output = &d.stdout
	case streamStderr:
		d.stderr.Stderr = data
		d.data.Output = &d.stderr
	default:
		d.term.Pty = data
		d.data.Output = &d.term
	}
	return &d.event
}

// processSpec resolves a request against the guest: user, directory, program.
func (a *Agent) processSpec(acc account, in *pb.StartRequest) (processSpec, error) {
	config := in.GetProcess()
	if config.GetCmd() == "" {
		return processSpec{}, nacre.Invalidf("process.cmd", "cmd is missing")
	}
	for _, arg := range append([]string{config.GetCmd()}, config.GetArgs()...) {
		if strings.IndexByte(arg, 0) >= 0 {
			return processSpec{}, nacre.Invalidf("process.args", "an argument contains a NUL byte")
		}
		if len(arg) > maxArg {
			return processSpec{}, nacre.Invalidf("process.args", "the command or an argument has %d bytes, and the kernel passes at most %d; put it into a file or send it as input", len(arg), maxArg)
		}
	}
	if err := checkEnv(config.GetEnvs()); err != nil {
		return processSpec{}, err
	}
	cwd, err := a.processCwd(acc, config.GetCwd())
	if err != nil {
		return processSpec{}, err
	}
	env := map[string]string{"PATH": defaultPath, "HOME": acc.home, "USER": acc.name, "LOGNAME": acc.name}
	maps.Copy(env, a.id.get().env)
	if in.GetPty() != nil {
		if _, ok := env["TERM"]; !ok {
			env["TERM"] = "xterm-256color"
		}
	}
	maps.Copy(env, config.GetEnvs())
	spec := processSpec{
		config: config, tag: in.Tag, acc: acc, cwd: cwd,
		argv:  append([]string{config.GetCmd()}, config.GetArgs()...),
		stdin: in.Stdin == nil || in.GetStdin(),
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		spec.env = append(spec.env, k+"="+env[k])
	}
	if in.GetPty() != nil {
		size := in.GetPty().GetSize()
		spec.term = &nacre.TermSize{Cols: 80, Rows: 24}
		if size.GetCols() > 0 && size.GetRows() > 0 {
			spec.term = &nacre.TermSize{Cols: int(size.GetCols()), Rows: int(size.GetRows())}
		}
	}
	if spec.path = lookPath(config.GetCmd(), cwd, env["PATH"]); spec.path == "" {
		return processSpec{}, nacre.Errorf(nacre.CodeNotFound, "command '%s' not found", config.GetCmd())
	}
	return spec, nil
}

// processCwd is the directory asked for, which must exist, or the default one,
// which need not: an image may lack a home.
func (a *Agent) processCwd(acc account, asked string) (string, error) {
	cwd := a.workdir(acc)
	if asked != "" {
		var err error
		if cwd, err = a.resolve(acc, asked); err != nil {
			return "", err
		}
	}
	if fi, err := os.Stat(cwd); err != nil || !fi.IsDir() {
		switch {
		case asked == "":
			return "/", nil
		case err == nil:
			return "", nacre.Invalidf("process.cwd", "cwd '%s' is not a directory", validText(cwd))
		}
		return "", nacre.Invalidf("process.cwd", "cwd '%s' does not exist", validText(cwd))
	}
	return cwd, nil
}

// maxArg is the longest argument, and the longest NAME=VALUE, that the kernel gives
// to a program. What is longer fails with an error that names neither; gVisor's
// even speaks of a file name.
const maxArg = 128<<10 - 1

// checkEnv refuses what cannot stand in an environment.
func checkEnv(env map[string]string) error {
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return nacre.Invalidf("envs", "'%s' is not a name for an environment variable", validText(k))
		}
		if strings.IndexByte(v, 0) >= 0 {
			return nacre.Invalidf("envs", "the value of '%s' contains a NUL byte", validText(k))
		}
		if n := len(k) + len("=") + len(v); n > maxArg {
			return nacre.Invalidf("envs", "the variable '%s' has %d bytes with its name, and the kernel passes at most %d; put it into a file", validText(k), n, maxArg)
		}
	}
	return nil
}

func (s *processService) selected(sel *pb.ProcessSelector, ended bool) (*process, error) {
	switch v := sel.GetSelector().(type) {
	case *pb.ProcessSelector_Pid:
		p, err := s.a.procs.byNumber(int(v.Pid), ended)
		return p, rpcError(err)
	case *pb.ProcessSelector_Tag:
		p, err := s.a.procs.byTag(v.Tag, ended)
		return p, rpcError(err)
	}
	return nil, rpcError(nacre.Invalidf("process", "process is missing: give a pid or a tag"))
}

func (s *processService) Update(_ context.Context, req *connect.Request[pb.UpdateRequest]) (*connect.Response[pb.UpdateResponse], error) {
	p, err := s.selected(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if size := req.Msg.GetPty().GetSize(); size != nil {
		if p.tty == nil {
			return nil, rpcError(nacre.Invalidf("pty", "process %d has no terminal", p.pid))
		}
		if err := p.tty.resize(int(size.GetCols()), int(size.GetRows())); err != nil {
			return nil, rpcError(nacre.Wrap(nacre.CodeNotFound, err, "the terminal is closed"))
		}
	}
	return connect.NewResponse(&pb.UpdateResponse{}), nil
}

func (s *processService) SendInput(ctx context.Context, req *connect.Request[pb.SendInputRequest]) (*connect.Response[pb.SendInputResponse], error) {
	p, err := s.selected(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if err := p.feed(ctx, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.SendInputResponse{}), nil
}

func (s *processService) StreamInput(ctx context.Context, stream *connect.ClientStream[pb.StreamInputRequest]) (*connect.Response[pb.StreamInputResponse], error) {
	var p *process
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *pb.StreamInputRequest_Start:
			var err error
			if p, err = s.selected(e.Start.GetProcess(), false); err != nil {
				return nil, err
			}
		case *pb.StreamInputRequest_Data:
			if p == nil {
				return nil, rpcError(nacre.Invalidf("event", "the first message must be start"))
			}
			if err := p.feed(ctx, e.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.StreamInputResponse{}), nil
}

// feed writes to stdin or to the terminal, whichever the client named.
func (p *process) feed(ctx context.Context, in *pb.ProcessInput) error {
	var data []byte
	switch v := in.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		if p.tty != nil {
			return rpcError(nacre.Invalidf("input", "process %d runs on a terminal: send pty input", p.pid))
		}
		data = v.Stdin
	case *pb.ProcessInput_Pty:
		if p.tty == nil {
			return rpcError(nacre.Invalidf("input", "process %d has no terminal: send stdin input", p.pid))
		}
		data = v.Pty
	default:
		return rpcError(nacre.Invalidf("input", "input is missing: give stdin or pty"))
	}
	if p.input == nil {
		return noStdin(p)
	}
	err := p.input.write(ctx, data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the process does not read its input"))
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	case p.isReaped():
		return rpcError(nacre.Errorf(nacre.CodeNotFound, "process with pid %d not found", p.pid))
	case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO):
		return noStdin(p)
	}
	return rpcError(err)
}

func noStdin(p *process) error {
	return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process's stdin is closed; start it with stdin: true to write to it"))
}

func (s *processService) CloseStdin(_ context.Context, req *connect.Request[pb.CloseStdinRequest]) (*connect.Response[pb.CloseStdinResponse], error) {
	p, err := s.selected(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if p.tty != nil {
		return nil, rpcError(nacre.Invalidf("process", "process %d runs on a terminal: send it an end-of-file character instead", p.pid))
	}
	if p.input != nil {
		p.input.close()
	}
	return connect.NewResponse(&pb.CloseStdinResponse{}), nil
}

func (s *processService) SendSignal(ctx context.Context, req *connect.Request[pb.SendSignalRequest]) (*connect.Response[pb.SendSignalResponse], error) {
	p, err := s.selected(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	var sig syscall.Signal
	switch req.Msg.GetSignal() {
	case pb.Signal_SIGNAL_SIGTERM:
		sig = unix.SIGTERM
	case pb.Signal_SIGNAL_SIGKILL:
		sig = unix.SIGKILL
	default:
		return nil, rpcError(nacre.Invalidf("signal", "signal must be SIGNAL_SIGTERM or SIGNAL_SIGKILL"))
	}
	if err := p.signal(sig); err != nil {
		return nil, rpcError(err)
	}
	if sig == unix.SIGKILL { // the answer means that it is gone
		t := time.NewTimer(killWait)
		defer t.Stop()
		select {
		case <-p.reaped:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return connect.NewResponse(&pb.SendSignalResponse{}), nil
}
