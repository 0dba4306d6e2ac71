package miosa

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

const (
	defaultPort  = 3000
	defaultShare = 3600           // seconds
	maxShare     = 30 * 24 * 3600 // seconds
	maxAncestors = 32
)

type newPreview struct {
	Port       *int                       `json:"port"`
	Visibility string                     `json:"visibility"`
	Label      string                     `json:"label"`
	Slug       string                     `json:"slug"`
	Metadata   map[string]json.RawMessage `json:"metadata"`
	// Either says who may embed the preview: origins, or "*".
	FrameAncestors  []string `json:"frame_ancestors"`
	AllowedOrigins  []string `json:"allowed_origins"`
	AllowEmbedding  *bool    `json:"allow_embedding"`
	EmbeddingOrigin string   `json:"embedding_origin"`
}

type preview struct {
	ID             string                     `json:"id"`
	PreviewID      string                     `json:"preview_id"`
	SandboxID      string                     `json:"sandbox_id"`
	Port           int                        `json:"port"`
	URL            string                     `json:"url"`
	PreviewURL     string                     `json:"preview_url"`
	Slug           string                     `json:"slug"`
	Label          *string                    `json:"label"`
	Visibility     string                     `json:"visibility"` // public, private
	Status         string                     `json:"status"`     // active, paused, inactive
	FrameAncestors []string                   `json:"frame_ancestors"`
	Metadata       map[string]json.RawMessage `json:"metadata"`
	CreatedAt      string                     `json:"created_at"`
	UpdatedAt      string                     `json:"updated_at"`
}

func (a *API) previewOf(p nacre.Preview, s nacre.Sandbox) preview {
	out := preview{ID: string(p.ID), PreviewID: string(p.ID), SandboxID: string(p.Sandbox), Port: p.Port, URL: a.previewURL(p.Slug),
		Slug: p.Slug, Label: filled(p.Label), Visibility: "public", Status: "active", FrameAncestors: p.Ancestors,
		Metadata: userMetadata(p.Metadata), CreatedAt: *timestamp(p.CreatedAt), UpdatedAt: *timestamp(p.UpdatedAt)}
	out.PreviewURL = out.URL
	if p.Private {
		out.Visibility = "private"
	}
	switch stateOf(s) {
	case statePaused:
		out.Status = "paused"
	case stateDestroyed, stateError:
		out.Status = "inactive"
	}
	if out.FrameAncestors == nil {
		out.FrameAncestors = []string{}
	}
	return out
}

// defaultPreview is where a sandbox is seen by anybody: its public preview of the
// default port, else its first; nil when it has none.
func (a *API) defaultPreview(list []nacre.Preview) *string {
	found := ""
	for _, p := range list {
		if !p.Private && (found == "" || p.Port == defaultPort) {
			found = a.previewURL(p.Slug)
			if p.Port == defaultPort {
				break
			}
		}
	}
	return filled(found)
}

func (a *API) previewURL(slug string) string { return a.Scheme + "://" + slug + "." + a.Domain }

var slugForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// hostForm is of labels that mean something else under the domain.
var hostForm = regexp.MustCompile(`^([0-9]{1,5}-.*|api|sandbox|sandboxes|www|preview)$`)

// record checks a request; what it leaves out is chosen.
func (in *newPreview) record(now time.Time) (nacre.Preview, error) {
	p := nacre.Preview{ID: nacre.NewPreviewID(), Slug: in.Slug, CreatedAt: now, UpdatedAt: now, Metadata: map[string]string{}}
	if in.Port == nil {
		return p, nacre.Invalidf("port", "port is missing; it is the one that the server in the sandbox listens on")
	}
	var err error
	if p.Port, err = number("port", in.Port, 0, 1, 65535); err != nil {
		return p, err
	}
	if p.Port == nacre.AgentPort {
		return p, nacre.Invalidf("port", "port %d is the server's own", p.Port)
	}
	switch in.Visibility {
	case "", "public":
	case "private":
		p.Private = true
	default:
		return p, nacre.Invalidf("visibility", "visibility must be public or private")
	}
	if p.Label, err = word("label", in.Label); err != nil {
		return p, err
	}
	if p.Slug == "" {
		p.Slug = nacre.NewPreviewSlug()
	} else if !slugForm.MatchString(p.Slug) || hostForm.MatchString(p.Slug) {
		return p, nacre.Invalidf("slug", "slug must be 1 to 63 of a-z, 0-9 and '-', not begin with a number and '-', and be no name of the server's own")
	}
	if p.Ancestors, err = in.ancestors(); err != nil {
		return p, err
	}
	return p, addMetadata(p.Metadata, in.Metadata)
}

var originForm = regexp.MustCompile(`^(\*|https?://(\*\.)?[a-zA-Z0-9.-]+(:[0-9]{1,5})?)$`)

func (in *newPreview) ancestors() ([]string, error) {
	out := append(in.FrameAncestors, in.AllowedOrigins...)
	if in.EmbeddingOrigin != "" {
		out = append(out, in.EmbeddingOrigin)
	}
	if in.AllowEmbedding != nil && *in.AllowEmbedding && len(out) == 0 {
		out = []string{"*"}
	}
	if len(out) > maxAncestors {
		return nil, nacre.Invalidf("frame_ancestors", "frame_ancestors: at most %d are allowed", maxAncestors)
	}
	for _, o := range out {
		if !originForm.MatchString(o) {
			return nil, nacre.Invalidf("frame_ancestors", "frame_ancestors must be origins such as https://app.example.com, or \"*\"")
		}
	}
	return out, nil
}

func (a *API) createPreview(c *api.Call) error {
	var in newPreview
	if err := read(c, &in); err != nil {
		return err
	}
	p, err := in.record(a.Clock().UTC())
	if err != nil {
		return err
	}
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	if p, err = a.insertPreview(c, s, p); err != nil {
		return err
	}
	return one(c, http.StatusCreated, a.previewOf(p, s))
}

func (a *API) insertPreview(c *api.Call, s nacre.Sandbox, p nacre.Preview) (nacre.Preview, error) {
	p.TeamID, p.Sandbox = c.Team, s.ID
	ready := nacre.Event{Time: p.CreatedAt, TeamID: c.Team, SandboxID: s.ID, Kind: nacre.EventPreviewReady,
		Data: map[string]string{"preview": string(p.ID), "port": strconv.Itoa(p.Port), "url": a.previewURL(p.Slug)}}
	return p, nameTaken(a.Previews.InsertPreview(c.R.Context(), p, ready))
}

func (a *API) listPreviews(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	all, err := a.Previews.Previews(c.R.Context(), c.Team, s.ID)
	if err != nil {
		return err
	}
	out := []preview{}
	for _, p := range all {
		out = append(out, a.previewOf(p, s))
	}
	return list(c, out)
}

// preview finds the path's preview of the path's sandbox.
func (a *API) preview(c *api.Call) (nacre.Preview, nacre.Sandbox, error) {
	s, err := a.record(c)
	if err != nil {
		return nacre.Preview{}, s, err
	}
	p, err := a.Previews.GetPreview(c.R.Context(), c.Team, nacre.PreviewID(c.R.PathValue("preview")))
	if err == nil && p.Sandbox != s.ID {
		err = nacre.Errorf(nacre.CodeNotFound, "there is no such preview")
	}
	return p, s, err
}

func (a *API) getPreview(c *api.Call) error {
	p, s, err := a.preview(c)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, a.previewOf(p, s))
}

// changePreview changes visibility, label and who may embed it.
func (a *API) changePreview(c *api.Call) error {
	var in newPreview
	if err := read(c, &in); err != nil {
		return err
	}
	p, s, err := a.preview(c)
	if err != nil {
		return err
	}
	given := in
	if in.Port == nil {
		in.Port = &p.Port
	}
	want, err := in.record(a.Clock().UTC())
	if err != nil {
		return err
	}
	p, err = a.Previews.UpdatePreview(c.R.Context(), c.Team, p.ID, func(p *nacre.Preview) error {
		p.Port, p.UpdatedAt = want.Port, want.UpdatedAt
		if given.Visibility != "" {
			p.Private = want.Private
		}
		if given.Label != "" {
			p.Label = want.Label
		}
		if given.Slug != "" {
			p.Slug = want.Slug
		}
		if want.Ancestors != nil {
			p.Ancestors = want.Ancestors
		}
		if given.Metadata != nil {
			if p.Metadata == nil {
				p.Metadata = map[string]string{}
			}
			return addMetadata(p.Metadata, given.Metadata)
		}
		return nil
	})
	if err != nil {
		return nameTaken(err)
	}
	return one(c, http.StatusOK, a.previewOf(p, s))
}

func (a *API) deletePreview(c *api.Call) error {
	p, _, err := a.preview(c)
	if err != nil {
		return err
	}
	if err := a.Previews.DeletePreview(c.R.Context(), c.Team, p.ID); err != nil {
		return err
	}
	return c.NoContent()
}

// expose returns the URL of a port, and makes a public preview when there is none.
func (a *API) expose(c *api.Call) error {
	var in struct {
		Port *int `json:"port"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	if in.Port == nil {
		port := defaultPort
		in.Port = &port
	}
	want, err := (&newPreview{Port: in.Port}).record(a.Clock().UTC())
	if err != nil {
		return err
	}
	p, err := a.exposed(c, s, want)
	if err != nil {
		return err
	}
	o := a.previewOf(p, s)
	info := map[string]any{"url": o.URL, "class": "temporary_preview", "url_class": "temporary_preview", "stable_for_embedding": false,
		"recommended_next_action": "create_alias_or_publish"}
	return one(c, http.StatusOK, map[string]any{"url": o.URL, "preview_url": o.URL, "port": o.Port, "preview_id": o.ID, "visibility": o.Visibility, "url_info": info})
}

// exposed finds the port's public preview, or makes it.
func (a *API) exposed(c *api.Call, s nacre.Sandbox, want nacre.Preview) (nacre.Preview, error) {
	all, err := a.Previews.Previews(c.R.Context(), c.Team, s.ID)
	if err != nil {
		return want, err
	}
	for _, p := range all {
		if p.Port == want.Port && !p.Private {
			return p, nil
		}
	}
	return a.insertPreview(c, s, want)
}
