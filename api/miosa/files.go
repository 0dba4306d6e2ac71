package miosa

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

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

type upload struct {
	Path          string  `json:"path"`
	Content       *string `json:"content"`
	ContentBase64 *string `json:"content_base64"`
	Data          *string `json:"data"`
}

// decode returns the content. plain tells what "content" is: text, or base64.
func (u *upload) decode(plain bool) ([]byte, error) {
	switch {
	case u.ContentBase64 != nil:
		return fromBase64("content_base64", *u.ContentBase64)
	case u.Content != nil && plain:
		return []byte(*u.Content), nil
	case u.Content != nil:
		return fromBase64("content", *u.Content)
	case u.Data != nil:
		return fromBase64("data", *u.Data)
	}
	return nil, nacre.Invalidf("content_base64", "content_base64 is missing; it is the content in base64")
}

// fromBase64 takes both alphabets, padded or not.
func fromBase64(field, s string) ([]byte, error) {
	s = strings.NewReplacer("-", "+", "_", "/", "\n", "", "\r", "").Replace(strings.TrimRight(strings.TrimSpace(s), "="))
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, nacre.Invalidf(field, "%s is not valid base64", field)
	}
	return b, nil
}

// readBig reads a body that may be large; release gives its turn back.
func (a *API) readBig(c *api.Call, v any) (release func(), err error) {
	if c.R.ContentLength < 0 || c.R.ContentLength > api.MaxBody {
		select {
		case a.big <- struct{}{}:
			rc := http.NewResponseController(c.W)
			_ = rc.SetReadDeadline(time.Now().Add(bigTime)) // where it cannot, turns may be held longer
			release = func() {
				<-a.big
				_ = rc.SetReadDeadline(time.Time{})
			}
		case <-c.R.Context().Done():
			return func() {}, c.R.Context().Err()
		}
	} else {
		release = func() {}
	}
	_, err = c.ReadUpTo(maxUpload, v)
	return release, err
}

func (a *API) writeFile(c *api.Call) error       { return a.write(c, true) }
func (a *API) writeFileLegacy(c *api.Call) error { return a.write(c, false) }

func (a *API) write(c *api.Call, plain bool) error {
	var in upload
	release, err := a.readBig(c, &in)
	defer release()
	if err != nil {
		return err
	}
	p, err := guestPath("path", in.Path)
	if err != nil {
		return err
	}
	content, err := in.decode(plain)
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	f, err := g.write(c, p, content)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, fileOf(f))
}

func (g *guest) write(c *api.Call, p string, content []byte) (out nacre.FileInfo, err error) {
	g.api.touch(g.id)
	err = asUser(func(user string) error {
		out, err = g.agent.Files().Write(c.R.Context(), user, p, bytes.NewReader(content))
		return err
	})
	if err == nil {
		g.tellFile(p, "write")
	}
	return out, err
}

// tellFile tells that a file was changed through this API.
func (g *guest) tellFile(p, op string) {
	g.api.touch(g.id)
	g.api.emit(g, nacre.EventFileChanged, map[string]string{"path": p, "op": op})
}

type writtenFile struct {
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
}

type failedFile struct {
	Path  string `json:"path"`
	Error string `json:"error"`
}

// writeMany writes each file for itself and says which of them failed.
func (a *API) writeMany(c *api.Call) error {
	var in struct {
		Files []upload `json:"files"`
	}
	release, err := a.readBig(c, &in)
	defer release()
	if err != nil {
		return err
	}
	if len(in.Files) > maxBatch {
		return nacre.Invalidf("files", "files: at most %d are written at once", maxBatch)
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	out := struct {
		Written []writtenFile `json:"written"`
		Failed  []failedFile  `json:"failed"`
	}{[]writtenFile{}, []failedFile{}}
	for _, u := range in.Files {
		f, err := g.writeOne(c, u)
		if err != nil {
			out.Failed = append(out.Failed, failedFile{u.Path, nacre.ErrorMessage(err)})
			continue
		}
		out.Written = append(out.Written, writtenFile{u.Path, f.Size})
	}
	return one(c, http.StatusOK, out)
}

func (g *guest) writeOne(c *api.Call, u upload) (nacre.FileInfo, error) {
	p, err := guestPath("path", u.Path)
	if err != nil {
		return nacre.FileInfo{}, err
	}
	content, err := u.decode(false)
	if err != nil {
		return nacre.FileInfo{}, err
	}
	return g.write(c, p, content)
}

// uploadFile takes a multipart form: its fields "path" and "file", in this order, or
// the path in the query. The file streams through.
func (a *API) uploadFile(c *api.Call) error {
	form, err := c.R.MultipartReader()
	if err != nil {
		return nacre.Invalidf("file", "file: the body must be a multipart form with the fields path and file")
	}
	target := c.R.URL.Query().Get("path")
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return nacre.Invalidf("file", "file is missing in the form")
		}
		if err != nil {
			return nacre.Wrap(nacre.CodeInvalid, err, "file: the form could not be read to its end")
		}
		switch part.FormName() {
		case "path":
			text, err := io.ReadAll(io.LimitReader(part, 8<<10))
			if err != nil {
				return nacre.Wrap(nacre.CodeInvalid, err, "path: the form could not be read to its end")
			}
			target = string(text)
		case "file":
			return a.receive(c, target, part)
		}
	}
}

func (a *API) receive(c *api.Call, target string, content io.Reader) error {
	p, err := guestPath("path", target)
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	defer a.busy(c.R.Context(), g.id)()
	user := nacre.GuestUser
	if _, err := g.agent.Files().Stat(c.R.Context(), user, "/"); nacre.IsCode(err, nacre.CodeUnauthenticated) {
		user = "" // the content can be read once only
	}
	f, err := g.agent.Files().Write(c.R.Context(), user, p, content)
	if err != nil {
		return err
	}
	g.tellFile(p, "write")
	return one(c, http.StatusOK, fileOf(f))
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
