package miosa

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// read takes up what a process says, and returns true when it has ended.
func (j *job) read(stream nacre.ProcessStream) bool {
	defer stream.Close()
	out, errs := lines{kind: "stdout"}, lines{kind: "stderr"}
	keep := func(e streamEvent) error {
		j.add(jobEntry{e.Type, *e.Line})
		return nil
	}
	flush := func() { _, _ = out.flush(keep), errs.flush(keep) } // keep does not fail
	for {
		e, err := stream.Next()
		switch {
		case errors.Is(err, io.EOF):
			return true
		case nacre.IsCode(err, nacre.CodeDeadline) && j.limited:
			flush()
			j.end(exitTimedOut, true)
			return true
		case err != nil:
			flush()
			return false
		case e.Exit != nil:
			flush()
			j.end(exitCode(*e.Exit), !e.Exit.Exited)
			return true
		case e.Term != nil:
			j.add(jobEntry{"terminal", string(e.Term)})
		default:
			_, _ = out.add(e.Stdout, keep), errs.add(e.Stderr, keep)
		}
	}
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
