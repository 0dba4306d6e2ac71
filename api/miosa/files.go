package miosa

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

const (
	// maxUpload is the largest body with files in base64; larger files go through the
	// multipart route, which holds nothing in memory.
	maxUpload = 64 << 20
	maxBatch  = 1000 // files of one batch
	maxDepth  = 64
)

// file is an entry of a list, and what is said of one file.
type file struct {
	Name       string `json:"name"`
	Path       string `json:"path"`
	Size       int64  `json:"size"`
	SizeBytes  int64  `json:"size_bytes"`
	IsDir      bool   `json:"is_dir"`
	IsSymlink  bool   `json:"is_symlink"`
	Type       string `json:"type"` // file, dir
	Mode       string `json:"mode"` // "0644"
	Owner      string `json:"owner"`
	ModifiedAt string `json:"modified_at"`
}

func fileOf(f nacre.FileInfo) file {
	out := file{Name: f.Name, Path: f.Path, Size: f.Size, SizeBytes: f.Size, IsDir: f.Dir, IsSymlink: f.Symlink != "",
		Type: "file", Mode: fmt.Sprintf("%04o", f.Mode&0o7777), Owner: f.Owner}
	if at := timestamp(f.ModTime); at != nil {
		out.ModifiedAt = *at
	}
	if f.Dir {
		out.Type = "dir"
	}
	return out
}

// guestPath checks a path of a request.
func guestPath(field, p string) (string, error) {
	if p == "" {
		return "", as("INVALID_PATH", nacre.Invalidf(field, "%s is missing; it is an absolute path", field))
	}
	if !strings.HasPrefix(p, "/") || strings.ContainsRune(p, 0) {
		return "", as("INVALID_PATH", nacre.Invalidf(field, "%s must be an absolute path, such as %s/app.py", field, workspace))
	}
	return path.Clean(p), nil
}

// queryPath is guestPath for the query; absent is the workspace.
func queryPath(c *api.Call) (string, error) {
	p := c.R.URL.Query().Get("path")
	if p == "" {
		p = workspace
	}
	return guestPath("path", p)
}

// fileAt is the guest and a path that a body names.
func (a *API) fileAt(c *api.Call) (*guest, string, error) {
	var in struct {
		Path string `json:"path"`
	}
	if err := read(c, &in); err != nil {
		return nil, "", err
	}
	p, err := guestPath("path", in.Path)
	if err != nil {
		return nil, "", err
	}
	g, err := a.guest(c)
	return g, p, err
}

func (a *API) downloadQuery(c *api.Call) error {
	p, err := guestPath("path", c.R.URL.Query().Get("path"))
	if err != nil {
		return err
	}
	return a.download(c, p)
}

// downloadPath has the file in its own path. One of the clients wants JSON there and
// is known by its name alone.
func (a *API) downloadPath(c *api.Call) error {
	p, err := guestPath("path", "/"+strings.TrimPrefix(c.R.PathValue("path"), "/"))
	if err != nil {
		return err
	}
	if strings.HasPrefix(c.R.UserAgent(), "miosa-cli") {
		return a.downloadJSON(c, p)
	}
	return a.download(c, p)
}

// download answers with the bytes, never as JSON, which clients would decode.
func (a *API) download(c *api.Call, p string) error {
	body, size, err := a.open(c, p)
	if err != nil {
		return err
	}
	defer body.Close()
	h := c.W.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(p)}))
	h.Set("Cache-Control", "no-store")
	if size >= 0 {
		h.Set("Content-Length", strconv.FormatInt(size, 10))
	}
	c.W.WriteHeader(http.StatusOK)
	if c.R.Method == http.MethodHead {
		return nil
	}
	_, err = io.Copy(c.W, body)
	return quiet(c, err)
}

func (a *API) open(c *api.Call, p string) (body io.ReadCloser, size int64, err error) {
	g, err := a.guest(c)
	if err != nil {
		return nil, 0, err
	}
	err = asUser(func(user string) error {
		body, size, err = g.agent.Files().Read(c.R.Context(), user, p)
		return err
	})
	return body, size, err
}

// small reads a file that becomes part of a JSON answer.
func (a *API) small(c *api.Call, p string) ([]byte, error) {
	body, _, err := a.open(c, p)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b := &bytes.Buffer{}
	n, err := io.Copy(b, io.LimitReader(body, maxOutput+1))
	if err == nil && n > maxOutput {
		err = nacre.Wrap(nacre.CodeInvalid, api.ErrTooLarge, fmt.Sprintf("the file is larger than %d bytes; download it instead", maxOutput))
	}
	return b.Bytes(), err
}

func (a *API) downloadJSON(c *api.Call, p string) error {
	b, err := a.small(c, p)
	if err != nil {
		return err
	}
	text := base64.StdEncoding.EncodeToString(b)
	return one(c, http.StatusOK, map[string]any{"path": p, "content": text, "content_base64": text, "encoding": "base64", "size": len(b)})
}

// readText answers with a file's text.
func (a *API) readText(c *api.Call) error {
	p, err := guestPath("path", c.R.URL.Query().Get("path"))
	if err != nil {
		return err
	}
	b, err := a.small(c, p)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, map[string]any{"path": p, "content": strings.ToValidUTF8(string(b), "\uFFFD"), "size": len(b)})
}

func (a *API) statFile(c *api.Call) error {
	g, p, err := a.fileAt(c)
	if err != nil {
		return err
	}
	f, err := g.stat(c, p)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, fileOf(f))
}

func (g *guest) stat(c *api.Call, p string) (out nacre.FileInfo, err error) {
	err = asUser(func(user string) error {
		out, err = g.agent.Files().Stat(c.R.Context(), user, p)
		return err
	})
	return out, err
}
