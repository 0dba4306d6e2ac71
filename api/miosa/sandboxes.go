package miosa

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// createSandbox answers when the sandbox runs.
func (a *API) createSandbox(c *api.Call) error {
	var in newSandbox
	if err := read(c, &in); err != nil {
		return err
	}
	req, err := createRequest(in)
	if err != nil {
		return err
	}
	return a.makeOnce(c, func() (nacre.Sandbox, error) {
		req.Metadata = api.Note(c.R.Context(), req.Metadata)
		s, err := a.Service.Create(c.R.Context(), c.Team, req)
		if nacre.IsCode(err, nacre.CodeNotFound) {
			err = as("TEMPLATE_NOT_FOUND", err)
		}
		if err == nil && in.Entrypoint != "" {
			err = a.enter(c, s, in.Entrypoint)
		}
		return s, err
	})
}

// makeOnce answers with the sandbox that this request has made already, or makes it.
func (a *API) makeOnce(c *api.Call, make func() (nacre.Sandbox, error)) error {
	s, found, err := api.MadeBefore(c, a.Service)
	if err == nil && !found {
		s, err = make()
	}
	if err != nil {
		return err
	}
	return one(c, http.StatusCreated, a.sandbox(s))
}

// enter starts a sandbox's entrypoint, as a process of that name.
func (a *API) enter(c *api.Call, s nacre.Sandbox, command string) error {
	agent, err := a.Traffic.Agent(c.R.Context(), s.ID)
	if err != nil {
		return err
	}
	g := &guest{api: a, id: s.ID, team: c.Team, agent: agent}
	_, err = a.jobs.start(c.R.Context(), g, startJob{name: "entrypoint", command: command, spec: nacre.Shell(command, nil)})
	return err
}

// record returns the path's sandbox, an ended one too.
func (a *API) record(c *api.Call) (nacre.Sandbox, error) {
	id, err := sandboxID(c)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	s, err := a.Service.Get(c.R.Context(), c.Team, id)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		err = as("SANDBOX_NOT_FOUND", err)
	}
	return s, err
}

// alive is record for one that has not ended.
func (a *API) alive(c *api.Call) (nacre.Sandbox, error) {
	s, err := a.record(c)
	if err == nil && !s.Alive() {
		err = errEnded(s)
	}
	return s, err
}

func (a *API) getSandbox(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, a.whole(c.R.Context(), s))
}

// whole is the object of one sandbox that is asked for, with what its record does not
// have. What cannot be told now is left out: the sandbox is there all the same.
func (a *API) whole(ctx context.Context, s nacre.Sandbox) sandbox {
	out := a.sandbox(s)
	if a.Activity != nil {
		out.LastActivityAt = timestamp(a.Activity.LastUse(s.ID))
	}
	if a.Usage != nil {
		if sums, err := a.Usage.Report(ctx, nacre.UsageFilter{TeamID: s.TeamID, Sandbox: s.ID}, ""); err == nil {
			sec := wholeSeconds(total(sums).Running)
			out.TotalRuntimeSec = &sec
		}
	}
	if a.Previews != nil && s.Alive() {
		if list, err := a.Previews.Previews(ctx, s.TeamID, s.ID); err == nil {
			out.PreviewURL = a.defaultPreview(list)
		}
	}
	return out
}

// getByName finds the newest sandbox that has not ended by its name, else by its slug.
func (a *API) getByName(c *api.Call) error {
	name := c.R.PathValue("name")
	for _, f := range []nacre.SandboxFilter{{Name: name}, {Metadata: map[string]string{nacre.LabelSlug: name}}} {
		f.States, f.Limit = aliveStates, 1
		page, err := a.Service.List(c.R.Context(), c.Team, f)
		if err != nil {
			return err
		}
		if len(page.Sandboxes) > 0 {
			return one(c, http.StatusOK, a.whole(c.R.Context(), page.Sandboxes[0]))
		}
	}
	return as("SANDBOX_NOT_FOUND", nacre.Errorf(nacre.CodeNotFound, "there is no sandbox of the name %.100q", name))
}

var aliveStates = slices.Concat(states[stateProvisioning], states[stateRunning], states[statePaused])

// query is a list's.
type query struct {
	filter nacre.SandboxFilter
	only   []string // words of which the state must be one; nil for any
	skip   int
	limit  int // 0: all
}

// wanted are the filters that are labels.
var wanted = map[string]string{
	"external_workspace_id": nacre.LabelExternalSpace, "external_user_id": nacre.LabelExternalUser,
	"external_project_id": nacre.LabelExternalProject, "workspace_id": nacre.LabelWorkspace,
	"workspace": nacre.LabelWorkspace, "project_id": nacre.LabelProject, "slug": nacre.LabelSlug, "size": keySize,
}

func parseQuery(c *api.Call) (query, error) {
	v := c.R.URL.Query()
	out := query{filter: nacre.SandboxFilter{States: aliveStates, Name: v.Get("name"), Metadata: map[string]string{}}}
	if words := split(append(v["state"], v["status"]...)); len(words) > 0 && !slices.Contains(words, "all") {
		out.filter.States, out.only = nil, words
		for _, w := range words {
			s, ok := states[w]
			if !ok {
				return out, nacre.Invalidf("state", "state: %.40q is none of provisioning, running, paused, destroyed, error, all", w)
			}
			for _, s := range s {
				if !slices.Contains(out.filter.States, s) {
					out.filter.States = append(out.filter.States, s)
				}
			}
		}
	} else if len(words) > 0 {
		out.filter.States = nil
	}
	for name, key := range wanted {
		if s := v.Get(name); s != "" {
			out.filter.Metadata[key] = s
		}
	}
	for _, t := range split(append(v["tags"], append(v["tags[]"], v["tag"]...)...)) {
		out.filter.Metadata[keyTag+t] = "1"
	}
	return out, out.paging(c)
}

// paging reads the ways to ask for a part; without any the list is complete.
func (q *query) paging(c *api.Call) (err error) {
	for _, name := range []string{"limit", "page_size", "per_page"} {
		if q.limit == 0 {
			if q.limit, err = intParam(c, name, 0, 1, 1000); err != nil {
				return err
			}
		}
	}
	if q.skip, err = intParam(c, "offset", 0, 0, 1<<30); err != nil {
		return err
	}
	page, err := intParam(c, "page", 1, 1, 1<<20)
	if page > 1 {
		if q.limit == 0 {
			q.limit = 100
		}
		q.skip += (page - 1) * q.limit
	}
	return err
}

// split takes a filter that was repeated, separated by commas, or both.
func split(values []string) (out []string) {
	for _, v := range values {
		for w := range strings.SplitSeq(v, ",") {
			if w = strings.TrimSpace(w); w != "" {
				out = append(out, w)
			}
		}
	}
	return out
}

// listSandboxes lists what has not ended, unless a state is asked for. A long list is
// sent as it is read.
func (a *API) listSandboxes(c *api.Call) error {
	q, err := parseQuery(c)
	if err != nil {
		return err
	}
	ctx := c.R.Context()
	q.filter.Limit = 1000
	if want := q.skip + q.limit; q.limit > 0 && q.only == nil {
		q.filter.Limit = min(1000, want)
	}
	page, err := a.Service.List(ctx, c.Team, q.filter)
	if err != nil {
		return err
	}
	c.W.Header().Set("Content-Type", "application/json")
	c.W.Header().Set("Cache-Control", "no-store")
	out := &rows{c: c, query: q}
	if err := out.text(`{"data":[`); err != nil {
		return nil
	}
	for {
		for _, s := range page.Sandboxes {
			if err := out.add(a.sandbox(s)); err != nil {
				return quiet(c, err)
			}
		}
		if page.Next == "" || out.full() {
			return quiet(c, out.text("]}\n"))
		}
		q.filter.Cursor = page.Next
		if page, err = a.Service.List(ctx, c.Team, q.filter); err != nil {
			return quiet(c, err)
		}
	}
}

// rows writes the elements of a list.
type rows struct {
	query
	c *api.Call
	n int
}

func (r *rows) full() bool { return r.limit > 0 && r.n >= r.limit }

func (r *rows) add(s sandbox) error {
	if r.full() || r.only != nil && !slices.Contains(r.only, s.State) {
		return nil
	}
	if r.skip > 0 {
		r.skip--
		return nil
	}
	row := encode(s)
	if r.n++; r.n > 1 {
		row = append([]byte{','}, row...)
	}
	_, err := r.c.W.Write(row)
	return err
}

func (r *rows) text(s string) error {
	_, err := r.c.W.Write([]byte(s))
	return err
}

// editSandbox changes what the body names. Metadata is merged: a null deletes.
func (a *API) editSandbox(c *api.Call) error {
	var in editSandbox
	if err := read(c, &in); err != nil {
		return err
	}
	return a.edit(c, in)
}

func (a *API) setTags(c *api.Call) error {
	var in struct {
		Tags *tags `json:"tags"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	if in.Tags == nil {
		return nacre.Invalidf("tags", "tags is missing; it is a list of strings")
	}
	return a.edit(c, editSandbox{Tags: in.Tags})
}

// edit makes all of the changes or none.
func (a *API) edit(c *api.Call, in editSandbox) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	req, err := in.request()
	if err != nil {
		return err
	}
	s, err := a.Editor.Edit(c.R.Context(), c.Team, id, req)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		err = as("SANDBOX_NOT_FOUND", err)
	}
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, a.sandbox(s))
}

// Editor changes what of a sandbox may change at any time; control implements it.
type Editor interface {
	Edit(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.EditRequest) (nacre.Sandbox, error)
}
