package moru

import (
	"net/http"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// sandboxID returns the path's id. One that cannot exist is as unknown as one
// that does not.
func sandboxID(c *api.Call) (nacre.SandboxID, error) {
	id := nacre.SandboxID(c.R.PathValue("id"))
	if !id.Valid() {
		return "", nacre.Errorf(nacre.CodeNotFound, "there is no sandbox with this id")
	}
	return id, nil
}

func (d *dialect) createSandbox(c *api.Call) error {
	var in newSandbox
	if err := readObject(c, &in); err != nil {
		return err
	}
	req, err := createRequest(in)
	if err != nil {
		return err
	}
	if req.Template, err = d.source(c, in.TemplateID); err != nil {
		return err
	}
	s, found, err := api.MadeBefore(c, d.Service)
	if err == nil && !found {
		req.Metadata = api.Note(c.R.Context(), req.Metadata)
		s, err = d.Service.Create(c.R.Context(), c.Team, req)
	}
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, d.sandbox(s))
}

func (d *dialect) getSandbox(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	s, err := d.Service.Get(c.R.Context(), c.Team, id)
	if err != nil {
		return err
	}
	if !s.Alive() {
		return s.Gone()
	}
	if _, ok := publicState(s.State); !ok {
		return nacre.Errorf(nacre.CodeNotFound, "sandbox %s is still being created", id)
	}
	out := d.detail(s)
	if d.Progress != nil {
		if done, total := d.Progress(id); total > 0 {
			out.Keeping = &keeping{done, total}
		}
	}
	return c.JSON(http.StatusOK, out)
}

func (d *dialect) killSandbox(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	if err := d.Service.Kill(c.R.Context(), c.Team, id); err != nil {
		return err
	}
	return c.NoContent()
}

// listRunning is the first list: running sandboxes, no pages.
func (d *dialect) listRunning(c *api.Call) error { return d.list(c, "running") }

func (d *dialect) listSandboxes(c *api.Call) error { return d.list(c, "running", "paused") }

func (d *dialect) list(c *api.Call, allowed ...string) error {
	page, err := d.page(c, "state", allowed...)
	if err != nil {
		return err
	}
	out := make([]listedSandbox, 0, len(page.Sandboxes))
	for _, s := range page.Sandboxes {
		out = append(out, d.listed(s))
	}
	return c.JSON(http.StatusOK, out)
}

// listRuns is Moru's history: ended sandboxes too.
func (d *dialect) listRuns(c *api.Call) error {
	page, err := d.page(c, "status", "running", "paused", "stopped")
	if err != nil {
		return err
	}
	out := make([]sandboxRun, 0, len(page.Sandboxes))
	for _, s := range page.Sandboxes {
		out = append(out, run(s))
	}
	return c.JSON(http.StatusOK, out)
}

// page lists and sets the next page's token; the clients stop when it is absent.
func (d *dialect) page(c *api.Call, stateParam string, allowed ...string) (nacre.SandboxPage, error) {
	q, err := parseSandboxQuery(c.R.URL.Query(), stateParam, allowed...)
	if err != nil {
		return nacre.SandboxPage{}, err
	}
	page, err := d.Service.List(c.R.Context(), c.Team, q.filter)
	if err != nil {
		return nacre.SandboxPage{}, err
	}
	page = q.narrow(page)
	if page.Next != "" {
		c.W.Header().Set("X-Next-Token", page.Next)
	}
	return page, nil
}

// readObject reads a body that must be there.
func readObject(c *api.Call, v any) error {
	present, err := c.Read(v)
	if err == nil && !present {
		err = nacre.Errorf(nacre.CodeInvalid, "the request needs a JSON body")
	}
	return err
}
