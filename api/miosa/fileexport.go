package miosa

import (
	"bufio"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// export describes files to be downloaded together.
type export struct {
	ID          string   `json:"id"`
	Label       string   `json:"label,omitempty"`
	Paths       []string `json:"paths"`
	Filename    string   `json:"filename"`
	Format      string   `json:"format"` // file, tar.gz
	DownloadURL string   `json:"download_url"`
	URL         string   `json:"url"`
	Size        int64    `json:"size"`
}

// createExport checks that the files are there and says where to get them.
func (a *API) createExport(c *api.Call) error {
	var in struct {
		Path     string   `json:"path"`
		Paths    []string `json:"paths"`
		Label    string   `json:"label"`
		Filename string   `json:"filename"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	if in.Path != "" {
		in.Paths = append(in.Paths, in.Path)
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	paths, first, err := g.exported(c, in.Paths)
	if err != nil {
		return err
	}
	out := export{ID: "exp_" + string(g.id), Label: in.Label, Paths: paths, Filename: in.Filename, Format: "tar.gz", Size: first.Size}
	if len(paths) == 1 && !first.Dir {
		out.Format = "file"
	}
	if out.Filename == "" {
		out.Filename = exportName(paths, first)
	}
	q := url.Values{"paths[]": paths, "filename": {out.Filename}}
	out.DownloadURL = baseURL(c.R) + Prefix + "/sandboxes/" + string(g.id) + "/exports/download?" + q.Encode()
	out.URL = out.DownloadURL
	return one(c, http.StatusCreated, out)
}

// exported checks the paths of an export and describes the first.
func (g *guest) exported(c *api.Call, given []string) (paths []string, first nacre.FileInfo, err error) {
	if len(given) == 0 || len(given) > maxBatch {
		return nil, first, nacre.Invalidf("paths", "paths must name 1 to %d files or directories", maxBatch)
	}
	for i, p := range given {
		if p, err = guestPath("paths", p); err != nil {
			return nil, first, err
		}
		f, err := g.stat(c, p)
		if err != nil {
			return nil, first, err
		}
		if i == 0 {
			first = f
		}
		paths = append(paths, p)
	}
	return paths, first, nil
}

func exportName(paths []string, first nacre.FileInfo) string {
	switch {
	case len(paths) > 1:
		return "export.tar.gz"
	case first.Dir:
		return path.Base(paths[0]) + ".tar.gz"
	}
	return path.Base(paths[0])
}

// downloadExport answers with a single file as it is, anything else as a tar.gz.
func (a *API) downloadExport(c *api.Call) error {
	q := c.R.URL.Query()
	given := append(q["path"], append(q["paths[]"], q["paths"]...)...)
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	paths, first, err := g.exported(c, given)
	if err != nil {
		return err
	}
	name := q.Get("filename")
	if name == "" {
		name = exportName(paths, first)
	}
	if len(paths) == 1 && !first.Dir {
		return a.download(c, paths[0])
	}
	return g.archive(c, name, paths)
}

// archive streams a tar.gz of the paths, which the guest's own tar makes.
func (g *guest) archive(c *api.Call, name string, paths []string) error {
	args := []string{"-czf", "-", "-C", "/", "--"}
	for _, p := range paths {
		args = append(args, "."+p)
	}
	stream, err := g.start(c.R.Context(), nacre.ProcessSpec{Cmd: "tar", Args: args, Cwd: "/", Unlogged: true})
	if err != nil {
		return err
	}
	defer stream.Close()
	defer g.killWith(c.R.Context(), stream.PID())()
	h := c.W.Header()
	h.Set("Content-Type", "application/gzip")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	h.Set("Cache-Control", "no-store")
	w := bufio.NewWriterSize(c.W, 64<<10)
	said := &bounded{max: 4 << 10}
	for {
		e, err := stream.Next()
		if errors.Is(err, io.EOF) {
			return quiet(c, w.Flush())
		}
		if err != nil {
			return quiet(c, err)
		}
		said.add(e.Stderr)
		if e.Exit != nil && e.Exit.Code != 0 {
			return toolError("tar", said.String())
		}
		if _, err := w.Write(e.Stdout); err != nil {
			return quiet(c, err)
		}
	}
}

// baseURL is how the client reached us.
func baseURL(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}
