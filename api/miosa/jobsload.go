package miosa

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// logScan is how many of a log's newest entries are read to find old jobs.
const logScan = 1000

// load finds the jobs that an earlier process of this server started: what they
// said and how they ended is in the sandbox's log, and who still runs, in the guest.
func (t *jobTable) load(ctx context.Context, js *jobs, g *guest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loaded {
		return nil
	}
	running, err := g.agent.Processes().List(ctx)
	if err != nil {
		return err
	}
	log, err := js.api.Service.Logs(ctx, g.team, g.id, nacre.LogQuery{Limit: logScan, Backward: true})
	if err != nil {
		return err
	}
	for i := len(log) - 1; i >= 0; i-- { // oldest first
		t.replay(log[i])
	}
	alive := map[int]bool{}
	var found []*finding
	for _, p := range running {
		if !isJob(p.Tag) {
			continue
		}
		alive[p.PID] = true
		j := t.byPID[p.PID]
		if j == nil || j.isDone() { // its beginning is no longer in the log
			j = newLoaded(t, p.PID, p.Tag, commandOf(p), js.api.Clock())
			t.byPID[p.PID] = j
		}
		j.cwd = p.Cwd
		if !j.isDone() {
			j.found = &finding{read: make(chan struct{})}
			found = append(found, j.found)
			js.run(g, j, nil) // which connects
		}
	}
	awaitAll(ctx, found)
	for pid, j := range t.byPID {
		if !alive[pid] {
			j.end(-1, true) // unless the log told how
		}
	}
	t.counted()
	t.loaded = true
	return nil
}

// findingTime is how long who asks first waits until the output of the jobs that were
// found is there.
const findingTime = 2 * time.Second

// finding is a job of an earlier process of this server that is taken up.
type finding struct {
	once sync.Once
	read chan struct{} // closed when what it had said is read

	// Who follows the job alone uses these.
	connected bool
	to        nacre.OutputSeen
}

// done tells that there is no more to wait for.
func (f *finding) done() {
	if f != nil {
		f.once.Do(func() { close(f.read) })
	}
}

func awaitAll(ctx context.Context, found []*finding) {
	ctx, cancel := context.WithTimeout(ctx, findingTime)
	defer cancel()
	for _, f := range found {
		select {
		case <-f.read:
		case <-ctx.Done():
			return
		}
	}
}

func isJob(tag string) bool {
	return strings.HasPrefix(tag, jobTag) || strings.HasPrefix(tag, terminalTag)
}

func newLoaded(t *jobTable, pid int, tag, command string, at time.Time) *job {
	return &job{table: t, pid: pid, tag: tag, name: strings.TrimPrefix(tag, jobTag), command: command,
		cwd: workspace, started: at, limited: true, changed: make(chan struct{}),
		out: lines{kind: "stdout"}, errs: lines{kind: "stderr"}}
}

// commandOf is the line that a shell was given.
func commandOf(p nacre.ProcessInfo) string {
	if n := len(p.Args); n > 0 {
		return p.Args[n-1]
	}
	return p.Cmd
}

// replay takes up one entry of the log; t.mu is held.
func (t *jobTable) replay(e nacre.LogEntry) {
	pid, err := strconv.Atoi(e.Fields["pid"])
	if err != nil {
		return
	}
	j := t.byPID[pid]
	switch e.Type {
	case nacre.LogProcessStart:
		delete(t.byPID, pid) // the number is used again
		if tag := e.Fields["tag"]; isJob(tag) {
			t.byPID[pid] = newLoaded(t, pid, tag, strings.TrimPrefix(e.Fields["command"], "/bin/bash -c "), e.Time)
		}
	case nacre.LogStdout, nacre.LogStderr:
		if j != nil {
			j.add(jobEntry{string(e.Type), e.Message})
		}
	case nacre.LogProcessEnd:
		if j != nil {
			var result struct {
				ExitCode int    `json:"exit_code"`
				Error    string `json:"error"`
			}
			_ = json.Unmarshal([]byte(e.Fields["process_result"]), &result) // the guest's: whatever it says
			j.end(exitCode(nacre.ProcessExit{Code: result.ExitCode, Exited: result.ExitCode >= 0, Status: result.Error}), result.ExitCode < 0)
			j.ended = e.Time
		}
	}
}
