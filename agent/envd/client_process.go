package envd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre"
	pb "github.com/nacrehq/nacre/agent/envd/processpb"
)

// processes implements nacre.Processes.
type processes struct{ c *Client }

// detach gives a stream a context that ends when ctx does, without its deadline:
// connect would send that along, and the guest take it for the process's.
func detach(ctx context.Context) (context.Context, context.CancelFunc) {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	return inner, func() { stop(); cancel() }
}

func (p *processes) Start(ctx context.Context, spec nacre.ProcessSpec) (nacre.ProcessStream, error) {
	req := &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: spec.Cmd, Args: spec.Args, Envs: spec.Env},
		Stdin:   &spec.Stdin,
	}
	if spec.Cwd != "" {
		req.Process.Cwd = &spec.Cwd
	}
	if spec.Tag != "" {
		req.Tag = &spec.Tag
	}
	if spec.Term != nil {
		req.Pty = terminal(*spec.Term)
	}
	inner, cancel := detach(withCall(ctx, callHeaders{user: spec.User, timeout: spec.Timeout, unlogged: spec.Unlogged, kept: spec.Kept}))
	stream, err := p.c.procs().Start(inner, connect.NewRequest(req))
	if err != nil {
		cancel()
		return nil, rpcError(ctx, err)
	}
	s := &processStream{ctx: ctx, cancel: cancel, closer: stream.Close, receive: func() (*pb.ProcessEvent, error) {
		if !stream.Receive() {
			return nil, stream.Err()
		}
		return stream.Msg().GetEvent(), nil
	}}
	started, err := s.begin()
	if err == nil {
		return started, nil
	}
	var known *nacre.Error
	if errors.As(err, &known) && known.Code == nacre.CodeInvalid && strings.HasPrefix(known.Message, "cwd ") {
		known.Field = "process.cwd" // the protocol has no place for it
	}
	return nil, err
}

func (p *processes) Connect(ctx context.Context, pid int) (nacre.ProcessStream, error) {
	s, err := p.connect(ctx, pid, callHeaders{})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (p *processes) ConnectAfter(ctx context.Context, pid int, seen nacre.OutputSeen) (nacre.ProcessStream, error) {
	s, err := p.connect(ctx, pid, callHeaders{seen: &seen})
	if err != nil {
		return nil, err
	}
	s.kept = &nacre.KeptOutput{None: true} // by an older agent
	if from, to, ok := parseOutput(s.header().Get(HeaderOutput)); ok {
		s.kept = &nacre.KeptOutput{From: from, To: to}
	}
	return s, nil
}

func (p *processes) connect(ctx context.Context, pid int, h callHeaders) (*processStream, error) {
	inner, cancel := detach(withCall(ctx, h))
	stream, err := p.c.procs().Connect(inner, connect.NewRequest(&pb.ConnectRequest{Process: selector(pid)}))
	if err != nil {
		cancel()
		return nil, rpcError(ctx, err)
	}
	s := &processStream{ctx: ctx, cancel: cancel, closer: stream.Close, header: stream.ResponseHeader, receive: func() (*pb.ProcessEvent, error) {
		if !stream.Receive() {
			return nil, stream.Err()
		}
		return stream.Msg().GetEvent(), nil
	}}
	return s.begin()
}

// FormatSeen is HeaderSeen's form.
func FormatSeen(o nacre.OutputSeen) string {
	return fmt.Sprintf("%d,%d,%d", o.Stdout, o.Stderr, o.Term)
}

// ParseSeen reads HeaderSeen.
func ParseSeen(s string) (nacre.OutputSeen, bool) {
	from, _, ok := parseOutput(s + ",0,0,0")
	return from, ok
}

func parseOutput(s string) (from, to nacre.OutputSeen, ok bool) {
	parts := strings.Split(s, ",")
	if len(parts) != 6 {
		return from, to, false
	}
	for i, n := range []*int64{&from.Stdout, &from.Stderr, &from.Term, &to.Stdout, &to.Stderr, &to.Term} {
		v, err := strconv.ParseInt(parts[i], 10, 64)
		if err != nil || v < 0 {
			return nacre.OutputSeen{}, nacre.OutputSeen{}, false
		}
		*n = v
	}
	return from, to, true
}

// processStream is one followed process.
type processStream struct {
	ctx     context.Context
	cancel  context.CancelFunc
	closer  func() error
	header  func() http.Header               // of the answer; of Connect only
	receive func() (*pb.ProcessEvent, error) // nil, nil at the end of the stream
	kept    *nacre.KeptOutput                // what Next returns first
	pid     int
	err     error // what Next returns from now on
}

// begin waits for the pid.
func (s *processStream) begin() (*processStream, error) {
	for {
		event, err := s.receive()
		if err != nil || event == nil {
			_ = s.Close()
			return nil, s.broken(err)
		}
		switch e := event.GetEvent().(type) {
		case *pb.ProcessEvent_Start:
			s.pid = int(e.Start.GetPid())
			return s, nil
		case *pb.ProcessEvent_Keepalive:
		default:
			_ = s.Close()
			return nil, nacre.Errorf(nacre.CodeUnavailable, "the guest's answer has no pid")
		}
	}
}

func (s *processStream) broken(err error) error {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return rpcError(s.ctx, err)
}

func (s *processStream) PID() int { return s.pid }

func (s *processStream) Next() (nacre.ProcessEvent, error) {
	if s.kept != nil && s.err == nil {
		e := nacre.ProcessEvent{Kept: s.kept}
		s.kept = nil
		return e, nil
	}
	for s.err == nil {
		event, err := s.receive()
		if err != nil || event == nil {
			s.err = s.broken(err)
			_ = s.Close()
			break
		}
		switch e := event.GetEvent().(type) {
		case *pb.ProcessEvent_Data:
			switch d := e.Data.GetOutput().(type) {
			case *pb.ProcessEvent_DataEvent_Stdout:
				return nacre.ProcessEvent{Stdout: d.Stdout}, nil
			case *pb.ProcessEvent_DataEvent_Stderr:
				return nacre.ProcessEvent{Stderr: d.Stderr}, nil
			case *pb.ProcessEvent_DataEvent_Pty:
				return nacre.ProcessEvent{Term: d.Pty}, nil
			}
		case *pb.ProcessEvent_End:
			s.err = io.EOF
			_, _ = s.receive() // the end frame, so that the connection can be used again
			_ = s.Close()
			return nacre.ProcessEvent{Exit: &nacre.ProcessExit{
				Code: int(e.End.GetExitCode()), Exited: e.End.GetExited(), Status: e.End.GetStatus(), Error: e.End.GetError(),
			}}, nil
		}
	}
	return nacre.ProcessEvent{}, s.err
}

// Close lets the process run. The context ends first: closing a stream reads
// what is left of it, and a running process's has no end.
func (s *processStream) Close() error {
	if !errors.Is(s.err, io.EOF) {
		s.cancel()
	}
	_ = s.closer()
	s.cancel()
	if s.err == nil {
		s.err = nacre.Errorf(nacre.CodeUnavailable, "the stream is closed")
	}
	return nil
}

func (p *processes) List(ctx context.Context) ([]nacre.ProcessInfo, error) {
	resp, err := p.c.procs().List(ctx, connect.NewRequest(&pb.ListRequest{}))
	if err != nil {
		return nil, rpcError(ctx, err)
	}
	out := make([]nacre.ProcessInfo, 0, len(resp.Msg.GetProcesses()))
	for _, i := range resp.Msg.GetProcesses() {
		c := i.GetConfig()
		out = append(out, nacre.ProcessInfo{
			PID: int(i.GetPid()), Cmd: c.GetCmd(), Args: c.GetArgs(), Env: c.GetEnvs(), Cwd: c.GetCwd(), Tag: i.GetTag(),
		})
	}
	return out, nil
}

func (p *processes) Signal(ctx context.Context, pid int, signal int) error {
	sig := pb.Signal(signal)
	if sig != pb.Signal_SIGNAL_SIGKILL && sig != pb.Signal_SIGNAL_SIGTERM {
		return nacre.Invalidf("signal", "signal %d cannot be sent: only 15 (terminate) and 9 (kill)", signal)
	}
	_, err := p.c.procs().SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: selector(pid), Signal: sig}))
	return rpcError(ctx, err)
}

// Input writes to a terminal where there is one, else to stdin. Which of them
// only the guest knows, so the likelier is tried first.
func (p *processes) Input(ctx context.Context, pid int, data []byte) error {
	send := func(in *pb.ProcessInput) error {
		_, err := p.c.procs().SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: selector(pid), Input: in}))
		return rpcError(ctx, err)
	}
	err := send(&pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: data}})
	if nacre.IsCode(err, nacre.CodeInvalid) {
		err = send(&pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: data}})
	}
	return err
}

func (p *processes) CloseInput(ctx context.Context, pid int) error {
	_, err := p.c.procs().CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: selector(pid)}))
	return rpcError(ctx, err)
}

func (p *processes) Resize(ctx context.Context, pid int, size nacre.TermSize) error {
	_, err := p.c.procs().Update(ctx, connect.NewRequest(&pb.UpdateRequest{Process: selector(pid), Pty: terminal(size)}))
	return rpcError(ctx, err)
}

func selector(pid int) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: uint32(max(0, pid))}}
}

func terminal(size nacre.TermSize) *pb.PTY {
	return &pb.PTY{Size: &pb.PTY_Size{Cols: uint32(max(0, size.Cols)), Rows: uint32(max(0, size.Rows))}}
}
