package miosa

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// startProcess starts a command that nobody waits for.
func (a *API) startProcess(c *api.Call) error {
	var in execBody
	if err := read(c, &in); err != nil {
		return err
	}
	spec, err := in.execSpec()
	if err != nil {
		return err
	}
	name, err := word("name", in.Name)
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	j, err := a.jobs.start(c.R.Context(), g, startJob{name: name, command: in.Command, spec: spec})
	if err != nil {
		return err
	}
	return one(c, http.StatusCreated, j.object())
}

func (a *API) listProcesses(c *api.Call) error {
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	all, err := a.jobs.list(c.R.Context(), g, jobTag)
	if err != nil {
		return err
	}
	out := make([]process, 0, len(all))
	for _, j := range all {
		out = append(out, j.object())
	}
	return list(c, out)
}

// job finds the path's process.
func (a *API) job(c *api.Call, tag string) (*guest, *job, error) {
	g, err := a.guest(c)
	if err != nil {
		return nil, nil, err
	}
	j, err := a.jobs.get(c.R.Context(), g, c.R.PathValue("pid"), tag)
	return g, j, err
}

func (a *API) getProcess(c *api.Call) error {
	_, j, err := a.job(c, jobTag)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, j.object())
}

// stopProcess ends a process; one that has ended already is no error.
func (a *API) stopProcess(c *api.Call) error {
	g, j, err := a.job(c, jobTag)
	if err != nil {
		return err
	}
	if err := j.stop(c.R.Context(), g); err != nil {
		return err
	}
	return c.NoContent()
}

// killCommand is stopProcess with the object for an answer.
func (a *API) killCommand(c *api.Call) error {
	g, j, err := a.job(c, jobTag)
	if err != nil {
		return err
	}
	if err := j.stop(c.R.Context(), g); err != nil {
		return err
	}
	return one(c, http.StatusOK, j.object())
}

// processLogs answers with the newest lines as one text.
func (a *API) processLogs(c *api.Call) error {
	_, j, err := a.job(c, jobTag)
	if err != nil {
		return err
	}
	tail, err := intParam(c, "tail", 200, 1, 100000)
	if err != nil {
		return err
	}
	entries, _, _, _ := j.after(0)
	entries = entries[max(0, len(entries)-tail):]
	var b strings.Builder
	for _, e := range entries {
		b.WriteString(e.text)
		b.WriteByte('\n')
	}
	return c.JSON(http.StatusOK, map[string]string{"data": b.String(), "logs": b.String()})
}

// intParam reads a whole number of the query.
func intParam(c *api.Call, name string, def, lo, hi int) (int, error) {
	s := c.R.URL.Query().Get(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < lo || n > hi {
		return 0, nacre.Invalidf(name, "%s must be a whole number from %d to %d", name, lo, hi)
	}
	return n, nil
}

// streamProcess sends what is kept of a process's output, what comes, and its exit.
func (a *API) streamProcess(c *api.Call) error {
	_, j, err := a.job(c, jobTag)
	if err != nil {
		return err
	}
	s, err := startSSE(c)
	if err != nil {
		return nil
	}
	produce := func(ctx context.Context, give func(streamEvent) error) error {
		return j.replayTo(ctx, func(e jobEntry) error {
			return give(streamEvent{Type: e.kind, Line: &e.text})
		})
	}
	err = follow(c.R.Context(), s, produce, func(e streamEvent) error { return s.send(e.Type, 0, e) })
	if err == nil {
		o := j.object()
		err = s.send("exit", 0, streamEvent{Type: "exit", ExitCode: o.ExitCode, DurationMS: o.DurationMS})
	}
	return quiet(c, err)
}

// quiet drops the error of a stream whose client has gone.
func quiet(c *api.Call, err error) error {
	if c.R.Context().Err() != nil {
		return nil
	}
	return err
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

const maxCommand = 600 * time.Second

// runCommand runs a command and answers with its result; a detached one becomes a
// process.
func (a *API) runCommand(c *api.Call) error {
	var in commandBody
	if err := read(c, &in); err != nil {
		return err
	}
	spec, err := in.spec()
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	if in.Detached {
		j, err := a.jobs.start(c.R.Context(), g, startJob{name: in.Name, command: in.Command, spec: spec})
		if err != nil {
			return err
		}
		return one(c, http.StatusCreated, j.object())
	}
	defer a.busy(c.R.Context(), g.id)()
	told := g.tellExec(in.Command)
	r, err := g.run(c.R.Context(), spec, in.Stdin)
	if err != nil {
		return err
	}
	told(r.ExitCode)
	return one(c, http.StatusOK, r)
}

func (in *commandBody) spec() (nacre.ProcessSpec, error) {
	if in.TimeoutSeconds != nil && *in.TimeoutSeconds > maxCommand.Seconds() {
		return nacre.ProcessSpec{}, as("TIMEOUT_TOO_LONG", nacre.Invalidf("timeout_seconds",
			"timeout_seconds must be at most %d; run longer work detached", int(maxCommand.Seconds())))
	}
	if _, err := word("name", in.Name); err != nil {
		return nacre.ProcessSpec{}, err
	}
	cwd := in.Cwd
	if cwd != "" && !strings.HasPrefix(cwd, "/") {
		cwd = workspace + "/" + cwd
	}
	spec, err := execBody{Command: in.Command, Cwd: cwd, Env: in.Env, Timeout: in.TimeoutSeconds}.execSpec()
	if err != nil {
		return spec, err
	}
	if spec.Timeout == 0 && !in.Detached {
		spec.Timeout = maxCommand
	}
	if spec.User = in.User; in.Sudo {
		spec.User = "root"
	}
	if in.TTY || in.Interactive {
		spec.Term = &nacre.TermSize{Cols: 80, Rows: 24}
	}
	return spec, nil
}
