package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
)

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// TestFile: what arrives is whole and the one that was meant, or nothing is there and
// the words say why and what to do.
func TestFile(t *testing.T) {
	content := []byte(strings.Repeat("vmlinux ", 100_000))
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/file":
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content)
		case "/moved":
			http.Redirect(w, r, "/file", http.StatusFound)
		case "/unsized":
			w.(http.Flusher).Flush()
			_, _ = w.Write(content)
		case "/truncated":
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:len(content)/2])
		case "/cut": // and says that it is all
			_, _ = w.Write(content[:len(content)/2])
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	here := filepath.Join(t.TempDir(), "here")
	if err := os.WriteFile(here, content, 0o644); err != nil {
		t.Fatal(err)
	}
	good, max := sum(content), int64(len(content))
	for name, c := range map[string]struct {
		from, sum string
		max       int64
		want      string // in the error; "" when it is to succeed
	}{
		"address":                  {s.URL + "/file", good, max, ""},
		"a sum in capitals":        {s.URL + "/file", strings.ToUpper(good), max, ""},
		"address that is moved":    {s.URL + "/moved", good, max, ""},
		"length is not told":       {s.URL + "/unsized", good, max, ""},
		"path":                     {here, "", max, ""},
		"path and sum":             {here, good, max, ""},
		"another sum":              {s.URL + "/file", sum(nil), max, "not the one that was meant"},
		"another sum of a path":    {here, sum(nil), max, "not the one that was meant"},
		"no sum":                   {s.URL + "/file", "", max, "SHA-256"},
		"connection breaks":        {s.URL + "/truncated", good, max, "unexpected EOF. Do this."},
		"shorter than it was":      {s.URL + "/cut", good, max, "not the one that was meant"},
		"not published":            {s.URL + "/none", good, max, "404 Not Found. Do this."},
		"longer than allowed":      {s.URL + "/file", good, max - 1, "more than"},
		"longer, length not told":  {s.URL + "/unsized", good, max - 1, "more than"},
		"nobody listens":           {"https://127.0.0.1:1/file", good, max, "connection refused. Do this."},
		"not https":                {"http://127.0.0.1/file", good, max, "https"},
		"no such path":             {"/nowhere/file", good, max, "cannot be read from /nowhere/file"},
		"a directory, not a file":  {t.TempDir(), "", max, "cannot be read"},
		"a device, not a file":     {"/dev/null", "", max, "cannot be read"},
		"a server not to be known": {strings.Replace(s.URL, "127.0.0.1", "localhost", 1) + "/file", good, max, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			var done, total int64
			src := Source{What: "the kernel", Advice: "Do this.", From: c.from, SHA256: c.sum, Max: c.max, Client: s.Client(),
				Progress: func(d, n int64) { done, total = d, n }}
			err := src.File(t.Context(), path)
			got, _ := os.ReadFile(path)
			if c.want != "" {
				if err == nil || !strings.Contains(nacre.ErrorMessage(err), c.want) || !strings.HasPrefix(nacre.ErrorMessage(err), "the kernel") {
					t.Errorf("%v; want an error of the kernel that says %q", err, c.want)
				}
				if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
				return
			}
			if err != nil || string(got) != string(content) {
				t.Errorf("%v, %d bytes", err, len(got))
			}
			if src.Remote() && (done != max || total != max && total != -1) {
				t.Errorf("told %d of %d, it has %d", done, total, max)
			}
		})
	}
}

// TestInterrupted: who ends a download in the middle finds nothing, and the next one
// works.
func TestInterrupted(t *testing.T) {
	content := []byte(strings.Repeat("vmlinux ", 100_000))
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ctx.Err() != nil {
			_, _ = w.Write(content)
			return
		}
		_, _ = w.Write(content[:len(content)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer s.Close()
	path := filepath.Join(t.TempDir(), "file")
	src := Source{What: "the kernel", From: s.URL, SHA256: sum(content), Max: 1 << 20, Client: s.Client(),
		Progress: func(int64, int64) { cancel() }}
	if err := src.File(ctx, path); !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("half of it is there: %v", err)
	}
	if err := src.File(t.Context(), path); err != nil {
		t.Errorf("again: %v", err)
	}
}
