package miosa

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

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
