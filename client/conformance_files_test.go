package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
)

func conformFiles(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c)
	f := sb.Files
	if err := f.WriteFile(ctx, "a/b/hello.txt", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	data, err := f.ReadFile(ctx, "a/b/hello.txt")
	if err != nil || string(data) != "hello" {
		t.Errorf("%q %v", data, err)
	}
	if res, err := sb.Run(ctx, "cat a/b/hello.txt"); err != nil || res.Stdout != "hello" {
		t.Errorf("relative paths and commands do not meet: %+v %v", res, err)
	}
	info, err := f.Stat(ctx, "a/b/hello.txt")
	if err != nil || info.Name != "hello.txt" || info.Dir || info.Size != 5 || info.Mode != 0o644 || time.Since(info.ModTime) > time.Hour {
		t.Errorf("%+v %v", info, err)
	}
	many, err := f.WriteMany(ctx, client.File{Path: "a/1", Data: strings.NewReader("1")}, client.File{Path: "a/2", Data: strings.NewReader("")},
		client.File{Path: "a/ü ?#%&+", Data: strings.NewReader("odd")})
	if err != nil || len(many) != 3 || many[1].Name != "2" || many[2].Size != 3 {
		t.Errorf("%+v %v", many, err)
	}
	list, err := f.List(ctx, "a", 1)
	if err != nil || names(list) != "1 2 b ü ?#%&+" {
		t.Errorf("%s %v", names(list), err)
	}
	if list, err = f.List(ctx, "a", 2); err != nil || names(list) != "1 2 b hello.txt ü ?#%&+" {
		t.Errorf("%s %v", names(list), err)
	}
	if data, err := f.ReadFile(ctx, "a/ü ?#%&+"); err != nil || string(data) != "odd" {
		t.Errorf("%q %v", data, err)
	}
	if data, err := f.ReadFile(ctx, "a/2"); err != nil || len(data) != 0 {
		t.Errorf("%q %v", data, err)
	}
	if moved, err := f.Rename(ctx, "a/1", "c/d/one"); err != nil || moved.Name != "one" {
		t.Errorf("%+v %v", moved, err)
	}
	for path, want := range map[string]bool{"a/1": false, "c/d/one": true, "c": true, "/no/such/place": false} {
		if got, err := f.Exists(ctx, path); got != want || err != nil {
			t.Errorf("%s exists: %v %v", path, got, err)
		}
	}
	for i, want := range []bool{true, false} {
		if created, err := f.MakeDir(ctx, "new/dir"); created != want || err != nil {
			t.Errorf("MakeDir %d: %v %v", i, created, err)
		}
	}
	for range 2 {
		if err := f.Remove(ctx, "a"); err != nil {
			t.Error(err)
		}
	}
	conformFileErrors(t, sb)
}

func names(list []client.FileInfo) string {
	out := make([]string, len(list))
	for i, info := range list {
		out[i] = info.Name
	}
	return strings.Join(out, " ")
}

func conformFileErrors(t *testing.T, sb *client.Sandbox) {
	ctx, f := t.Context(), sb.Files
	_, readErr := f.ReadFile(ctx, "missing")
	_, statErr := f.Stat(ctx, "missing")
	_, listErr := f.List(ctx, "missing", 1)
	_, moveErr := f.Rename(ctx, "missing", "elsewhere")
	_, watchErr := f.Watch(ctx, "missing", false)
	for what, err := range map[string]error{"read": readErr, "stat": statErr, "list": listErr, "move": moveErr, "watch": watchErr} {
		if !errors.Is(err, client.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a missing file: %v", what, err)
		}
	}
	_, dirErr := f.ReadFile(ctx, "/")
	_, fileErr := f.List(ctx, "c/d/one", 1)
	_, makeErr := f.MakeDir(ctx, "c/d/one")
	for what, err := range map[string]error{"read of a directory": dirErr, "list of a file": fileErr, "directory over a file": makeErr} {
		if !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := f.As("nobody-of-that-name").ReadFile(ctx, "x"); !errors.Is(err, client.ErrUnauthenticated) {
		t.Errorf("unknown user: %v", err)
	}
	broken := errors.New("the source broke")
	if _, err := f.Write(ctx, "half", io.MultiReader(strings.NewReader("half"), failingReader{broken})); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func conformLargeFiles(t *testing.T, c *client.Client) {
	const size = 64 << 20
	ctx := t.Context()
	sb := sandbox(t, c)
	up := sha256.New()
	if _, err := sb.Files.Write(ctx, "large", io.TeeReader(io.LimitReader(rand.Reader, size), up)); err != nil {
		t.Fatal(err)
	}
	r, err := sb.Files.Open(ctx, "large")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	down := sha256.New()
	if n, err := io.Copy(down, r); n != size || err != nil || !bytes.Equal(up.Sum(nil), down.Sum(nil)) {
		t.Errorf("%d bytes, %v, equal %v", n, err, bytes.Equal(up.Sum(nil), down.Sum(nil)))
	}
}

func conformSignedURLs(t *testing.T, c *client.Client) {
	sb := sandbox(t, c)
	if up, err := sb.IsRunning(t.Context()); !up {
		t.Fatal(err)
	}
	var form bytes.Buffer
	mw := multipart.NewWriter(&form)
	part, err := mw.CreateFormFile("file", "anything")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(part, "posted")
	mw.Close()
	resp, err := http.Post(sb.Files.UploadURL("dir/posted.txt", time.Minute), mw.FormDataContentType(), &form)
	if err != nil {
		t.Fatal(err)
	}
	if body := drain(t, resp); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	for name, tc := range map[string]struct {
		url  string
		want int
	}{
		"for ever":     {sb.Files.DownloadURL("dir/posted.txt", 0), 200},
		"for a minute": {sb.Files.DownloadURL("dir/posted.txt", time.Minute), 200},
		"as root":      {sb.Files.As("root").DownloadURL("/etc/passwd", time.Minute), 200},
		"expired":      {sb.Files.DownloadURL("dir/posted.txt", -time.Minute), 401},
	} {
		resp, err := http.Get(tc.url)
		if err != nil {
			t.Fatal(err)
		}
		if body := drain(t, resp); resp.StatusCode != tc.want {
			t.Errorf("%s: %d %.200s", name, resp.StatusCode, body)
		}
	}
}

func conformWatch(t *testing.T, c *client.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sb := sandbox(t, c)
	if _, err := sb.Files.MakeDir(ctx, "watched/below"); err != nil {
		t.Fatal(err)
	}
	w, err := sb.Files.Watch(ctx, "watched", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Files.WriteFile(ctx, "watched/below/x", []byte("y")); err != nil {
		t.Fatal(err)
	}
	if err := sb.Files.Remove(ctx, "watched/below/x"); err != nil {
		t.Fatal(err)
	}
	var ops []string
	for e, err := range w.Events() {
		if err != nil {
			t.Fatal(err)
		}
		if e.Name != "below/x" {
			t.Errorf("%+v", e)
		}
		ops = append(ops, string(e.Op))
		if e.Op == client.FileRemove {
			break
		}
	}
	if strings.Join(ops, " ") != "create chmod write remove" {
		t.Errorf("%v", ops)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for e, err := range w.Events() {
		t.Errorf("after Close: %+v %v", e, err)
	}
}
