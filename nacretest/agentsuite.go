package nacretest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nacrehq/nacre"
)

// AgentGuest is one guest with an agent that nobody has initialised yet. It has
// /bin/sh and the usual programs.
type AgentGuest struct {
	// Client returns a client with these tokens, "" for none.
	Client func(hostToken, accessToken string) nacre.Agent
	User   string // the default user, not root
	Home   string // of that user
	Dir    string // an absolute directory that this user can write in
}

const (
	agentHostToken   = "host-token"
	agentAccessToken = "access-token"
)

// agentBench is an initialised guest under test.
type agentBench struct {
	AgentGuest
	nacre.Agent
	ctx context.Context
}

// TestAgent holds an implementation, guest and client together, to the contract
// of nacre.Agent. open returns a fresh guest.
func TestAgent(t *testing.T, open func(t *testing.T) AgentGuest) {
	t.Helper()
	t.Run("InitComesFirst", func(t *testing.T) { agentInitFirst(t, open(t)) })
	for name, test := range map[string]func(*testing.T, *agentBench){
		"InitRepeats":         agentInitRepeats,
		"Stats":               agentStats,
		"Run":                 agentRun,
		"RunErrors":           agentRunErrors,
		"Environment":         agentEnvironment,
		"Input":               agentInput,
		"Terminal":            agentTerminal,
		"Signal":              agentSignal,
		"ConnectAndClose":     agentConnect,
		"Timeout":             agentTimeout,
		"BackgroundJob":       agentBackgroundJob,
		"MuchOutput":          agentMuchOutput,
		"SlowReaderSlows":     agentSlowReader,
		"FilesRoundTrip":      agentFilesRoundTrip,
		"FilesTree":           agentFilesTree,
		"FilesErrors":         agentFilesErrors,
		"FilesBrokenUpload":   agentBrokenUpload,
		"Watch":               agentWatch,
		"Logs":                agentLogs,
		"EndsWithItsContext":  agentContext,
		"UnknownUserAnywhere": agentUnknownUser,
	} {
		t.Run(name, func(t *testing.T) { test(t, openAgent(t, open(t))) })
	}
}

func openAgent(t *testing.T, g AgentGuest) *agentBench {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	b := &agentBench{AgentGuest: g, Agent: g.Client(agentHostToken, agentAccessToken), ctx: ctx}
	mustAgent(t, b.Init(ctx, b.identity()))
	return b
}

func (b *agentBench) identity() nacre.AgentInit {
	return nacre.AgentInit{
		Hostname: "guest", Env: map[string]string{"FROM_INIT": "one", "BOTH": "init"},
		AccessToken: agentAccessToken, HostToken: agentHostToken,
		Time: time.Now(), Entropy: bytes.Repeat([]byte{7}, 32), DNS: "192.0.2.1", DefaultUser: b.User,
	}
}

func mustAgent(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantAgentCode(t *testing.T, what string, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Errorf("%s: got %v, want %s", what, err, code)
	}
}

// agentResult is a whole run.
type agentResult struct {
	out, err, term string
	exit           *nacre.ProcessExit
}

func (b *agentBench) start(t *testing.T, spec nacre.ProcessSpec) nacre.ProcessStream {
	t.Helper()
	s, err := b.Processes().Start(b.ctx, spec)
	mustAgent(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (b *agentBench) sh(t *testing.T, script string) agentResult {
	t.Helper()
	return finishProcess(t, b.start(t, shell(script)))
}

func shell(script string) nacre.ProcessSpec {
	return nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", script}}
}

func finishProcess(t *testing.T, s nacre.ProcessStream) agentResult {
	t.Helper()
	var r agentResult
	for {
		e, err := s.Next()
		if errors.Is(err, io.EOF) {
			if r.exit == nil {
				t.Fatal("the stream ended without an exit")
			}
			return r
		}
		mustAgent(t, err)
		r.out += string(e.Stdout)
		r.err += string(e.Stderr)
		r.term += string(e.Term)
		if e.Exit != nil {
			r.exit = e.Exit
		}
	}
}

// readUntil follows a process until its output or terminal shows text.
func readUntil(t *testing.T, s nacre.ProcessStream, text string) {
	t.Helper()
	seen := ""
	for !strings.Contains(seen, text) {
		e, err := s.Next()
		if err != nil {
			t.Fatalf("%v before %q came; so far %q", err, text, seen)
		}
		if e.Exit != nil {
			t.Fatalf("exit %+v before %q came; so far %q", *e.Exit, text, seen)
		}
		seen += string(e.Stdout) + string(e.Stderr) + string(e.Term)
	}
}

func agentInitFirst(t *testing.T, g AgentGuest) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a := g.Client("", "")
	mustAgent(t, a.Healthy(ctx))
	_, err := a.Stats(ctx)
	wantAgentCode(t, "Stats before Init", err, nacre.CodeUnauthenticated)
	_, err = a.Processes().Start(ctx, shell("true"))
	wantAgentCode(t, "Start before Init", err, nacre.CodeUnauthenticated)
	_, _, err = a.Files().Read(ctx, "", "x")
	wantAgentCode(t, "Read before Init", err, nacre.CodeUnauthenticated)
	_, err = a.Files().List(ctx, "", "/", 1)
	wantAgentCode(t, "List before Init", err, nacre.CodeUnauthenticated)

	b := openAgent(t, g)
	if err := g.Client("wrong", "").Init(ctx, b.identity()); err == nil {
		t.Error("a second Init with another host token was accepted")
	}
	wrong := g.Client(agentHostToken, "wrong")
	_, err = wrong.Processes().List(ctx)
	wantAgentCode(t, "List with a wrong access token", err, nacre.CodeUnauthenticated)
	_, _, err = wrong.Files().Read(ctx, "", "x")
	wantAgentCode(t, "Read with a wrong access token", err, nacre.CodeUnauthenticated)
	_, err = g.Client("wrong", agentAccessToken).Stats(ctx)
	wantAgentCode(t, "Stats with a wrong host token", err, nacre.CodeUnauthenticated)
}

func agentInitRepeats(t *testing.T, b *agentBench) {
	in := b.identity()
	in.Env = map[string]string{"ONLY": "this"}
	in.AccessToken = "another"
	mustAgent(t, b.Init(b.ctx, in))
	_, err := b.Processes().List(b.ctx)
	wantAgentCode(t, "the old access token", err, nacre.CodeUnauthenticated)
	b.Agent = b.Client(agentHostToken, "another")
	if r := b.sh(t, "echo $ONLY-$FROM_INIT"); r.out != "this-\n" {
		t.Errorf("environment after a second Init: %q", r.out)
	}
}

func agentStats(t *testing.T, b *agentBench) {
	s, err := b.Stats(b.ctx)
	mustAgent(t, err)
	if s.CPUCount < 1 || s.MemTotal <= 0 || s.MemUsed <= 0 || s.DiskTotal <= 0 || s.At.IsZero() {
		t.Errorf("stats are not filled: %+v", s)
	}
}

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
	spec.Timeout = 300 * time.Millisecond
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
	began := time.Now()
	r := b.sh(t, "(sleep 1; echo late; echo survived > "+b.Dir+"/job) & echo now")
	if r.out != "now\n" || r.exit.Code != 0 {
		t.Errorf("got %q, %+v", r.out, *r.exit)
	}
	if d := time.Since(began); d > 900*time.Millisecond {
		t.Errorf("a background job that holds stdout kept the command for %v", d)
	}
	// The job writes to nobody, and must not die of it.
	if r := b.sh(t, "until [ -s "+b.Dir+"/job ]; do sleep 0.05; done; cat "+b.Dir+"/job"); r.out != "survived\n" {
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

func agentFilesRoundTrip(t *testing.T, b *agentBench) {
	f := b.Files()
	for _, n := range []int{0, 1, 4096, 300_000, 5_000_000} {
		path := b.Dir + "/made/by write/" + strconv.Itoa(n)
		want := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
		info, err := f.Write(b.ctx, "", path, iotest.HalfReader(bytes.NewReader(want)))
		mustAgent(t, err)
		if info.Path != path || info.Name != strconv.Itoa(n) || info.Size != int64(n) || info.Dir ||
			info.Mode != 0o644 || info.Permissions != "-rw-r--r--" || info.Owner != b.User || time.Since(info.ModTime).Abs() > time.Minute {
			t.Errorf("written: %+v", info)
		}
		r, size, err := f.Read(b.ctx, "", path)
		mustAgent(t, err)
		got, err := io.ReadAll(r)
		mustAgent(t, errors.Join(err, r.Close()))
		if size != int64(n) || !bytes.Equal(got, want) {
			t.Errorf("%d bytes written, %d announced, %d read, equal %v", n, size, len(got), bytes.Equal(got, want))
		}
	}
	dir, err := f.Stat(b.ctx, "", b.Dir+"/made")
	mustAgent(t, err)
	if !dir.Dir || dir.Mode != 0o755 || dir.Owner != b.User {
		t.Errorf("a made parent: %+v", dir)
	}
	// A shorter content replaces all of a longer one.
	path := b.Dir + "/made/by write/300000"
	_, err = f.Write(b.ctx, "", path, strings.NewReader("short"))
	mustAgent(t, err)
	if r := b.sh(t, "cat '"+path+"'"); r.out != "short" {
		t.Errorf("after a shorter write the file begins with %.20q", r.out)
	}
	// Relative paths and "~" are the home, which is where commands run.
	info, err := f.Write(b.ctx, "", "relative.txt", strings.NewReader("x"))
	mustAgent(t, err)
	home, err := f.Stat(b.ctx, "", "~/relative.txt")
	mustAgent(t, err)
	if info.Path != b.Home+"/relative.txt" || home.Path != info.Path {
		t.Errorf("relative %q, of the home %q", info.Path, home.Path)
	}
	mustAgent(t, f.Remove(b.ctx, "", "relative.txt"))
}

func agentFilesTree(t *testing.T, b *agentBench) {
	f, d := b.Files(), b.Dir
	_, err := f.MakeDir(b.ctx, "", d+"/b/c")
	mustAgent(t, err)
	for _, name := range []string{"/z", "/a", "/b/2", "/b/1", "/b/c/deep"} {
		_, err := f.Write(b.ctx, "", d+name, strings.NewReader(name))
		mustAgent(t, err)
	}
	names := func(depth int) string {
		list, err := f.List(b.ctx, "", d, depth)
		mustAgent(t, err)
		var out []string
		for _, i := range list {
			out = append(out, strings.TrimPrefix(i.Path, d+"/"))
		}
		return strings.Join(out, " ")
	}
	if got := names(1); got != "a b z" {
		t.Errorf("depth 1: %s", got)
	}
	if got := names(0); got != "a b z" {
		t.Errorf("depth 0 means 1: %s", got)
	}
	if got := names(2); got != "a b b/1 b/2 b/c z" {
		t.Errorf("depth 2: %s", got)
	}
	if got := names(9); got != "a b b/1 b/2 b/c b/c/deep z" {
		t.Errorf("depth 9: %s", got)
	}
	moved, err := f.Move(b.ctx, "", d+"/b", d+"/new/place")
	mustAgent(t, err)
	if moved.Path != d+"/new/place" || !moved.Dir {
		t.Errorf("moved: %+v", moved)
	}
	mustAgent(t, f.Remove(b.ctx, "", d+"/new"))
	mustAgent(t, f.Remove(b.ctx, "", d+"/new"))
	if got := names(9); got != "a z" {
		t.Errorf("after move and remove: %s", got)
	}
	b.sh(t, "ln -s "+d+"/a "+d+"/link; ln -s gone "+d+"/dangling")
	link, err := f.Stat(b.ctx, "", d+"/link")
	mustAgent(t, err)
	if link.Name != "link" || link.Symlink != d+"/a" || link.Dir || link.Mode != 0o644 || !strings.HasPrefix(link.Permissions, "L") {
		t.Errorf("a symlink: %+v", link)
	}
	dangling, err := f.Stat(b.ctx, "", d+"/dangling")
	mustAgent(t, err)
	if dangling.Symlink != d+"/gone" {
		t.Errorf("a dangling symlink: %+v", dangling)
	}
}

func agentFilesErrors(t *testing.T, b *agentBench) {
	f, d := b.Files(), b.Dir
	_, err := f.Write(b.ctx, "", d+"/file", strings.NewReader("x"))
	mustAgent(t, err)
	_, err = f.MakeDir(b.ctx, "", d+"/dir/full")
	mustAgent(t, err)
	read := func(path string) error { _, _, err := f.Read(b.ctx, "", path); return err }
	stat := func(path string) error { _, err := f.Stat(b.ctx, "", path); return err }
	list := func(path string) error { _, err := f.List(b.ctx, "", path, 1); return err }
	mkdir := func(path string) error { _, err := f.MakeDir(b.ctx, "", path); return err }
	write := func(path string) error { _, err := f.Write(b.ctx, "", path, strings.NewReader("y")); return err }
	move := func(from, to string) error { _, err := f.Move(b.ctx, "", from, to); return err }
	long := d + "/" + strings.Repeat("n", 300)
	for _, c := range []struct {
		what string
		err  error
		code nacre.Code
	}{
		{"read missing", read(d + "/missing"), nacre.CodeNotFound},
		{"read a directory", read(d + "/dir"), nacre.CodeInvalid},
		{"read a device", read("/dev/zero"), nacre.CodeInvalid},
		{"stat missing", stat(d + "/missing"), nacre.CodeNotFound},
		{"list missing", list(d + "/missing"), nacre.CodeNotFound},
		{"list a file", list(d + "/file"), nacre.CodeInvalid},
		{"make an existing directory", mkdir(d + "/dir"), nacre.CodeConflict},
		{"make a directory over a file", mkdir(d + "/file"), nacre.CodeInvalid},
		{"make a directory below a file", mkdir(d + "/file/x"), nacre.CodeInvalid},
		{"write over a directory", write(d + "/dir"), nacre.CodeInvalid},
		{"write below a file", write(d + "/file/x"), nacre.CodeInvalid},
		{"write to a device", write("/dev/null"), nacre.CodeInvalid},
		{"write a name that is too long", write(long), nacre.CodeInvalid},
		{"write a path that is too long", write(d + "/" + strings.Repeat("d/", 2100)), nacre.CodeInvalid},
		{"read a path with NUL", read(d + "/a\x00b"), nacre.CodeInvalid},
		{"move missing", move(d+"/missing", d+"/x"), nacre.CodeNotFound},
		{"move a file over a directory that is not empty", move(d+"/file", d+"/dir"), nacre.CodeConflict},
	} {
		if c.what == "move a file over a directory that is not empty" {
			if c.err == nil {
				t.Errorf("%s: no error", c.what)
			}
			continue
		}
		wantAgentCode(t, c.what, c.err, c.code)
	}
}

func agentBrokenUpload(t *testing.T, b *agentBench) {
	broken := io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), iotest.ErrReader(errors.New("the source broke")))
	_, err := b.Files().Write(b.ctx, "", b.Dir+"/half", broken)
	if err == nil || !strings.Contains(err.Error(), "the source broke") {
		t.Errorf("a broken source: %v", err)
	}
	// The guest notices the broken connection on its own time.
	if r := b.sh(t, "n=0; while [ -e "+b.Dir+"/half ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done; ls "+b.Dir); r.out != "" {
		t.Errorf("half a file was left: %q", r.out)
	}
}

func agentWatch(t *testing.T, b *agentBench) {
	f, d := b.Files(), b.Dir
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	ready := make(chan struct{})
	events := make(chan nacre.FileEvent, 64)
	ended := make(chan error, 1)
	go func() {
		ended <- f.Watch(ctx, "", d, true, func() { close(ready) }, func(e nacre.FileEvent) error {
			events <- e
			return nil
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	want := func(name string, op nacre.FileOp) {
		t.Helper()
		select {
		case e := <-events:
			if e.Name != name || e.Op != op {
				t.Errorf("got %+v, want %s of %s", e, op, name)
			}
		case err := <-ended:
			t.Fatalf("the watch ended: %v", err)
		case <-b.ctx.Done():
			t.Fatalf("no %s of %s came", op, name)
		}
	}
	_, err := f.Write(b.ctx, "", d+"/new", strings.NewReader("x"))
	mustAgent(t, err)
	want("new", nacre.FileCreate)
	want("new", nacre.FileChmod)
	want("new", nacre.FileWrite)
	_, err = f.MakeDir(b.ctx, "", d+"/sub")
	mustAgent(t, err)
	want("sub", nacre.FileCreate)
	want("sub", nacre.FileChmod)
	_, err = f.Write(b.ctx, "", d+"/sub/inner", strings.NewReader("x"))
	mustAgent(t, err)
	want("sub/inner", nacre.FileCreate)
	want("sub/inner", nacre.FileChmod)
	want("sub/inner", nacre.FileWrite)
	_, err = f.Move(b.ctx, "", d+"/new", d+"/newer")
	mustAgent(t, err)
	want("new", nacre.FileRename)
	want("newer", nacre.FileCreate)
	mustAgent(t, f.Remove(b.ctx, "", d+"/newer"))
	want("newer", nacre.FileRemove)
	cancel()
	if err := <-ended; err == nil {
		t.Error("a watch that was given up ended without an error")
	}
	nothing := func(nacre.FileEvent) error { return nil }
	wantAgentCode(t, "watch missing", f.Watch(b.ctx, "", d+"/missing", false, func() {}, nothing), nacre.CodeNotFound)
	wantAgentCode(t, "watch a file", f.Watch(b.ctx, "", d+"/sub/inner", false, func() {}, nothing), nacre.CodeInvalid)
}

func agentLogs(t *testing.T, b *agentBench) {
	b.sh(t, "echo line; echo problem >&2; printf unfinished; exit 5")
	enough := errors.New("enough")
	collect := func(after int64, until func(nacre.LogEntry) bool) (out []nacre.LogEntry) {
		err := b.Logs(b.ctx, after, func(e nacre.LogEntry) error {
			out = append(out, e)
			if until(e) {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Fatalf("Logs: %v", err)
		}
		return out
	}
	all := collect(0, func(e nacre.LogEntry) bool { return e.Type == nacre.LogProcessEnd })
	kinds := map[nacre.LogType]string{}
	for i, e := range all {
		if e.Seq != all[0].Seq+int64(i) || e.Time.IsZero() {
			t.Errorf("entry %d: %+v", i, e)
		}
		kinds[e.Type] += e.Message + "|"
	}
	if kinds[nacre.LogStdout] != "line|unfinished|" || kinds[nacre.LogStderr] != "problem|" {
		t.Errorf("output in the log: %q", kinds)
	}
	first, last := all[0], all[len(all)-1]
	if first.Type != nacre.LogProcessStart || !strings.Contains(first.Fields["command"], "echo line") || first.Fields["pid"] == "" {
		t.Errorf("the first entry: %+v", first)
	}
	if last.Fields["process_result"] != `{"exit_code":5,"error":"exit status 5"}` {
		t.Errorf("the last entry: %+v", last)
	}
	rest := collect(last.Seq-1, func(nacre.LogEntry) bool { return true })
	if len(rest) != 1 || rest[0].Seq != last.Seq {
		t.Errorf("after a cursor: %+v", rest)
	}
	// It goes on with what happens next.
	next := make(chan nacre.LogEntry, 1)
	go func() {
		_ = b.Logs(b.ctx, last.Seq, func(e nacre.LogEntry) error { next <- e; return enough })
	}()
	b.sh(t, "true")
	if e := <-next; e.Seq != last.Seq+1 {
		t.Errorf("the next entry: %+v", e)
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

func agentUnknownUser(t *testing.T, b *agentBench) {
	f, u := b.Files(), "nobody-of-that-name"
	_, _, read := f.Read(b.ctx, u, "/etc/passwd")
	_, write := f.Write(b.ctx, u, b.Dir+"/x", strings.NewReader(""))
	_, stat := f.Stat(b.ctx, u, "/")
	_, list := f.List(b.ctx, u, "/", 1)
	for what, err := range map[string]error{"Read": read, "Write": write, "Stat": stat, "List": list, "Remove": f.Remove(b.ctx, u, b.Dir)} {
		wantAgentCode(t, what, err, nacre.CodeUnauthenticated)
		if got := nacre.ErrorMessage(err); got != "invalid username: '"+u+"'" {
			t.Errorf("%s: message %q", what, got)
		}
	}
}
