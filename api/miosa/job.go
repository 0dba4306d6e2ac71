package miosa

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// read takes up what a process says, and returns true when it has ended.
func (j *job) read(stream nacre.ProcessStream) bool {
	defer stream.Close()
	for {
		e, err := stream.Next()
		switch {
		case errors.Is(err, io.EOF):
			return true
		case nacre.IsCode(err, nacre.CodeDeadline) && j.limited:
			j.flush()
			j.end(exitTimedOut, true)
			return true
		case err != nil:
			return false
		case e.Exit != nil:
			j.flush()
			j.end(exitCode(*e.Exit), !e.Exit.Exited)
			return true
		case e.Kept != nil:
			j.goOn(*e.Kept)
		default:
			j.said(e)
		}
		if f := j.found; f != nil && f.connected && reached(j.seen, f.to) {
			f.done()
		}
	}
}

func (j *job) said(e nacre.ProcessEvent) {
	j.seen.Stdout += int64(len(e.Stdout))
	j.seen.Stderr += int64(len(e.Stderr))
	j.seen.Term += int64(len(e.Term))
	if len(e.Term) > 0 {
		j.add(jobEntry{"terminal", string(e.Term)})
	}
	_, _ = j.out.add(e.Stdout, j.keep), j.errs.add(e.Stderr, j.keep) // keep does not fail
}

func (j *job) keep(e streamEvent) error {
	j.add(jobEntry{e.Type, *e.Line})
	return nil
}

// flush takes up what has no end of a line.
func (j *job) flush() { _, _ = j.out.flush(j.keep), j.errs.flush(j.keep) }

// goOn begins with what the guest has kept since the job was read last, and says what
// is missing of it.
func (j *job) goOn(k nacre.KeptOutput) {
	missing := max(0, k.From.Stdout-j.seen.Stdout) + max(0, k.From.Stderr-j.seen.Stderr) + max(0, k.From.Term-j.seen.Term)
	first := j.found != nil && !j.found.connected
	if first {
		j.found.connected, j.found.to = true, k.To
	}
	switch {
	case k.None && !first:
		j.flush()
		j.note("[output may be missing here]")
	case k.None:
	case first:
		j.forget() // the guest's is whole, the log's is not
		fallthrough
	default:
		if missing > 0 {
			j.flush()
			j.note(fmt.Sprintf("[%d bytes are missing here]", missing))
		}
		j.seen = k.From
	}
}

// note says something of the job's output among it.
func (j *job) note(text string) {
	if strings.HasPrefix(j.tag, terminalTag) {
		j.add(jobEntry{"terminal", "\r\n" + text + "\r\n"})
		return
	}
	j.add(jobEntry{"stderr", text})
}

// forget drops the output that there is.
func (j *job) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.first += int64(len(j.entries))
	j.entries, j.bytes = nil, 0
}

func reached(seen, to nacre.OutputSeen) bool {
	return seen.Stdout >= to.Stdout && seen.Stderr >= to.Stderr && seen.Term >= to.Term
}

func (j *job) add(e jobEntry) {
	most := j.table.share()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, e)
	j.bytes += len(e.text) + 32
	drop := 0
	for j.bytes > most && drop < len(j.entries)-1 {
		j.bytes -= len(j.entries[drop].text) + 32
		j.entries[drop] = jobEntry{}
		drop++
	}
	j.entries = j.entries[drop:]
	j.first += int64(drop)
	j.tell()
}

func (j *job) end(code int, killed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.done {
		return
	}
	j.done, j.code, j.killed, j.ended = true, code, killed, time.Now()
	j.tell()
}

// tell wakes who waits; j.mu is held.
func (j *job) tell() {
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *job) isDone() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.done
}

// after returns the entries from a position on, the next position, and what to wait
// on when there are none; done tells that no more will come.
func (j *job) after(at int64) (entries []jobEntry, next int64, done bool, changed <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	at = max(at, j.first)
	entries = slices.Clone(j.entries[min(int(at-j.first), len(j.entries)):])
	return entries, j.first + int64(len(j.entries)), j.done, j.changed
}

// object is what a client sees of a job.
func (j *job) object() process {
	j.mu.Lock()
	defer j.mu.Unlock()
	pid := strconv.Itoa(j.pid)
	out := process{PID: pid, ID: pid, JobID: pid, CommandID: pid, Name: j.name, Command: j.command, Cwd: j.cwd,
		Status: "running", StartedAt: *timestamp(j.started)}
	if j.done {
		code := j.code
		ms := j.ended.Sub(j.started).Milliseconds()
		out.Status, out.ExitCode, out.EndedAt, out.DurationMS = "exited", &code, timestamp(j.ended), &ms
		if j.killed {
			out.Status = "killed"
		}
	}
	out.State = out.Status
	return out
}

// stop ends a job: SIGTERM, and SIGKILL when that was not enough.
func (j *job) stop(ctx context.Context, g *guest) error {
	if j.isDone() {
		return nil
	}
	err := g.agent.Processes().Signal(ctx, j.pid, 15)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		err = nil
	}
	if err == nil && !j.wait(ctx, stopGrace) {
		if err = g.agent.Processes().Signal(ctx, j.pid, 9); err == nil {
			j.wait(ctx, stopGrace)
		}
	}
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nil
	}
	return err
}

// wait tells whether the job ended in time.
func (j *job) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		_, _, done, changed := j.after(1 << 62)
		if done {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// replayTo gives all entries, the kept and the coming ones, until the job has ended.
func (j *job) replayTo(ctx context.Context, give func(jobEntry) error) error {
	at := int64(0)
	for {
		entries, next, done, changed := j.after(at)
		for _, e := range entries {
			if err := give(e); err != nil {
				return err
			}
		}
		at = next
		if len(entries) > 0 {
			continue
		}
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
