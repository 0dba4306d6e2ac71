package moru

import (
	"net/http"
	"slices"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

func (d *dialect) listTemplates(c *api.Call) error {
	ts, err := d.Service.Templates(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	out := make([]template, 0, len(ts))
	for _, t := range ts {
		out = append(out, d.template(t))
	}
	return c.JSON(http.StatusOK, out)
}

func (d *dialect) getTemplate(c *api.Call) error {
	t, err := d.findTemplate(c, c.R.PathValue("template"))
	if err != nil {
		return err
	}
	out := templateWithBuilds{template: d.template(t), Builds: []templateBuild{}}
	if t.Build != "" {
		out.Builds = append(out.Builds, templateBuild{
			BuildID: string(t.Build), Status: out.BuildStatus,
			CreatedAt: out.UpdatedAt, UpdatedAt: out.UpdatedAt, FinishedAt: out.UpdatedAt,
			CPUCount: out.CPUCount, MemoryMB: out.MemoryMB, DiskSizeMB: out.DiskSizeMB,
			EnvdVersion: d.EnvdVersion,
		})
	}
	return c.JSON(http.StatusOK, out)
}

func (d *dialect) getTemplateAlias(c *api.Call) error {
	t, err := d.findTemplate(c, c.R.PathValue("alias"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, templateAlias{TemplateID: string(t.ID), Public: t.Public})
}

// findTemplate finds by id or name what the team may use.
func (d *dialect) findTemplate(c *api.Call, nameOrID string) (nacre.Template, error) {
	ts, err := d.Service.Templates(c.R.Context(), c.Team)
	if err != nil {
		return nacre.Template{}, err
	}
	i := slices.IndexFunc(ts, func(t nacre.Template) bool {
		return string(t.ID) == nameOrID || slices.Contains(t.Names, nameOrID)
	})
	if i < 0 {
		return nacre.Template{}, nacre.Errorf(nacre.CodeNotFound, "template %.100q not found", nameOrID)
	}
	return ts[i], nil
}

func (d *dialect) template(t nacre.Template) template {
	out := template{
		TemplateID: string(t.ID), BuildID: string(t.Build),
		CPUCount: t.Resources.CPUs, MemoryMB: t.Resources.MemoryMiB, DiskSizeMB: t.Resources.DiskMiB,
		Public: t.Public, Aliases: t.Names, Names: t.Names, Runtime: string(t.Runtime),
		CreatedAt: timestamp(t.CreatedAt), UpdatedAt: timestamp(t.UpdatedAt),
		EnvdVersion: d.EnvdVersion, BuildStatus: "waiting",
	}
	if t.Names == nil {
		out.Aliases, out.Names = []string{}, []string{}
	}
	if t.Build != "" {
		out.BuildStatus, out.BuildCount = "ready", 1
	}
	out.SpawnCount, out.LastSpawnedAt = t.Use.Count, timestampOrNull(t.Use.Last)
	return out
}
