package miosa

import (
	"net/http"
	"slices"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

type template struct {
	ID             string   `json:"id"`
	TemplateID     string   `json:"template_id"`
	Name           string   `json:"name"`
	Slug           string   `json:"slug"`
	Aliases        []string `json:"aliases"`
	Description    string   `json:"description"`
	ImageID        string   `json:"image_id"`
	BuiltIn        bool     `json:"built_in"`
	Default        bool     `json:"default"`
	Status         string   `json:"status"` // ready, building
	State          string   `json:"state"`
	CPUCount       int      `json:"cpu_count"`
	MemoryMB       int      `json:"memory_mb"`
	DiskMB         int      `json:"disk_mb"`
	DiskSizeMB     int      `json:"disk_size_mb"`
	Workdir        string   `json:"workdir"`
	PreviewPort    *int     `json:"preview_port"`
	InstallCommand *string  `json:"install_command"`
	StartCommand   *string  `json:"start_command"`
	ReadinessProbe *string  `json:"readiness_probe"`
	Runtimes       []string `json:"runtimes"`
	ArtifactPaths  []string `json:"artifact_paths"`
	Tags           []string `json:"tags"`
	Categories     []string `json:"categories"`
	BuildSpec      any      `json:"build_spec"`
	CurrentBuildID *string  `json:"current_build_id"`
	CreatedAt      string   `json:"created_at"`
	UpdatedAt      string   `json:"updated_at"`
}

func templateOf(t nacre.Template) template {
	out := template{ID: string(t.ID), TemplateID: string(t.ID), ImageID: string(t.Build), BuiltIn: t.TeamID == "",
		Status: "building", State: "building", Aliases: []string{}, CPUCount: t.Resources.CPUs, MemoryMB: t.Resources.MemoryMiB,
		DiskMB: t.Resources.DiskMiB, DiskSizeMB: t.Resources.DiskMiB, Workdir: workspace, StartCommand: filled(t.Start),
		ReadinessProbe: filled(t.Ready), Runtimes: []string{"python", "node", "bash"}, ArtifactPaths: []string{workspace},
		Tags: []string{}, Categories: []string{}, CurrentBuildID: filled(string(t.Build)),
		CreatedAt: *timestamp(t.CreatedAt), UpdatedAt: *timestamp(t.UpdatedAt)}
	if t.Build != "" {
		out.Status, out.State = "ready", "ready"
	}
	if len(t.Names) > 0 {
		out.Name, out.Aliases = t.Names[0], t.Names[1:]
	}
	out.Slug = out.Name
	out.Default = slices.Contains(t.Names, defaultTemplate)
	if out.BuiltIn && out.Slug != "" {
		out.ID, out.TemplateID = out.Slug, out.Slug // built-ins are known by their names
	}
	return out
}

func (a *API) listTemplates(c *api.Call) error {
	ts, err := a.Service.Templates(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	out := make([]template, 0, len(ts))
	for _, t := range ts {
		out = append(out, templateOf(t))
	}
	slices.SortStableFunc(out, func(a, b template) int {
		switch {
		case a.Default && !b.Default:
			return -1
		case b.Default && !a.Default:
			return 1
		}
		return 0
	})
	return c.JSON(http.StatusOK, map[string]any{"default_template_id": defaultTemplate, "data": out})
}

// template finds the path's template by id or name.
func (a *API) template(c *api.Call) (nacre.Template, error) {
	name := c.R.PathValue("template")
	ts, err := a.Service.Templates(c.R.Context(), c.Team)
	if err != nil {
		return nacre.Template{}, err
	}
	for _, t := range ts {
		if string(t.ID) == name || slices.Contains(t.Names, name) {
			return t, nil
		}
	}
	return nacre.Template{}, as("TEMPLATE_NOT_FOUND", nacre.Errorf(nacre.CodeNotFound, "template %.100q not found", name))
}

func (a *API) getTemplate(c *api.Call) error {
	t, err := a.template(c)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, templateOf(t))
}

type templateVersion struct {
	Version   int    `json:"version"`
	Ref       string `json:"ref"`
	BuildID   string `json:"build_id"`
	State     string `json:"state"`
	ImageID   string `json:"image_id"`
	Usable    bool   `json:"usable"`
	Current   bool   `json:"current"`
	CreatedAt string `json:"created_at"`
}

// templateVersions lists the versions that a create can still get: the current one.
func (a *API) templateVersions(c *api.Call) error {
	t, err := a.template(c)
	if err != nil {
		return err
	}
	out := []templateVersion{}
	if t.Build != "" {
		out = append(out, templateVersion{1, templateOf(t).Slug + "@" + string(t.Build), string(t.Build), "ready", string(t.Build), true, true, *timestamp(t.UpdatedAt)})
	}
	return list(c, out)
}

// catalogue is the product list, in the form that every client takes.
func (a *API) catalogue(c *api.Call) error {
	ts, err := a.Service.Templates(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	type entry struct {
		template
		Product string   `json:"product"`
		Sizes   []string `json:"sizes"`
	}
	out := make([]entry, 0, len(ts))
	for _, t := range ts {
		out = append(out, entry{templateOf(t), "sandbox", []string{"xs", "small", "medium"}})
	}
	return c.JSON(http.StatusOK, map[string]any{"templates": out, "products": []string{"sandbox"}, "sizes": []string{"xs", "small", "medium"}})
}
