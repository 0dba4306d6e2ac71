package miosa

import (
	"context"
	"net/http"
	"strings"

	"github.com/nacrehq/nacre/api"
)

// startProcess starts a command that nobody waits for.
func (a *API) startProcess(c *api.Call) error {
	in, spec, err := readExec(c)
	if err != nil {
		return err
	}
	return a.detach(c, in, spec)
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
func (a *API) job(c *api.Call) (*guest, *job, error) {
	g, err := a.guest(c)
	if err != nil {
		return nil, nil, err
	}
	j, err := a.jobs.get(c.R.Context(), g, c.R.PathValue("pid"), jobTag)
	return g, j, err
}

func (a *API) getProcess(c *api.Call) error {
	_, j, err := a.job(c)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, j.object())
}

// stopProcess ends a process; one that has ended already is no error.
func (a *API) stopProcess(c *api.Call) error {
	g, j, err := a.job(c)
	if err != nil {
		return err
	}
	if err := j.stop(c.R.Context(), g); err != nil {
		return err
	}
	return c.NoContent()
}

// processLogs answers with the newest lines as one text.
func (a *API) processLogs(c *api.Call) error {
	_, j, err := a.job(c)
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

// streamProcess sends what is kept of a process's output, what comes, and its exit.
func (a *API) streamProcess(c *api.Call) error {
	_, j, err := a.job(c)
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
