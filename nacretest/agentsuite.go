package nacretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
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
		"ConnectAfter":        agentConnectAfter,
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
func readUntil(t *testing.T, s nacre.ProcessStream, text string) string {
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
	return seen
}

func agentInitFirst(t *testing.T, g AgentGuest) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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

func agentLogs(t *testing.T, b *agentBench) {
	own := shell("echo for the host alone; exit 3")
	own.Unlogged = true
	finishProcess(t, b.start(t, own))
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
	var sofar []nacre.LogEntry
	mustAgent(t, b.LogsSoFar(b.ctx, first.Seq, func(e nacre.LogEntry) error { sofar = append(sofar, e); return nil }))
	if len(sofar) != len(all)-1 || sofar[len(sofar)-1].Seq != last.Seq {
		t.Errorf("so far, after the first: %+v", sofar)
	}
	mustAgent(t, b.LogsSoFar(b.ctx, last.Seq, func(e nacre.LogEntry) error { return fmt.Errorf("there is %+v after the last", e) }))
	if err := b.LogsSoFar(b.ctx, 0, func(nacre.LogEntry) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("so far, until it is enough: %v", err)
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
