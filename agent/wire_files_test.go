package agent_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/agent/envd"
	"github.com/nacrehq/nacre/nacretest"
)

func TestFault37_SignedURLs(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "secret")
	must(t, os.WriteFile(g.home+"/hello.txt", []byte("hi"), 0o644))
	get := func(q url.Values) (int, string) {
		status, body, _ := g.request(t, "GET", "/files?"+q.Encode(), nil)
		return status, body
	}
	signed := func(path, op, user string, exp int64) url.Values {
		q := url.Values{"path": {path}, "signature": {envd.Signature(path, op, user, "secret", exp)}}
		if user != "" {
			q.Set("username", user)
		}
		if exp != 0 {
			q.Set("signature_expiration", fmt.Sprint(exp))
		}
		return q
	}
	later, past := time.Now().Add(time.Hour).Unix(), time.Now().Add(-time.Minute).Unix()
	for _, q := range []url.Values{signed("hello.txt", "read", "user", 0), signed("hello.txt", "read", "", later)} {
		if status, body := get(q); status != 200 || body != "hi" {
			t.Errorf("a valid signature: %d %s", status, body)
		}
	}
	expired := signed("hello.txt", "read", "user", past)
	if status, body := get(expired); status != 401 || body != `{"code":401,"message":"signature is already expired"}` {
		t.Errorf("expired: %d %s", status, body)
	}
	expired.Set("signature_expiration", fmt.Sprint(later))
	for what, q := range map[string]url.Values{
		"a later expiration": expired,
		"another operation":  signed("hello.txt", "write", "user", 0),
		"no signature":       {"path": {"hello.txt"}},
		"an empty signature": {"path": {"hello.txt"}, "signature": {""}},
	} {
		if status, _ := get(q); status != 401 {
			t.Errorf("%s: %d", what, status)
		}
	}
	other := signed("hello.txt", "read", "user", 0)
	other.Set("path", "/etc/passwd")
	if status, _ := get(other); status != 401 {
		t.Errorf("another path: %d", status)
	}
	asRoot := signed("hello.txt", "read", "user", 0)
	asRoot.Set("username", "root")
	if status, _ := get(asRoot); status != 401 {
		t.Errorf("another user: %d", status)
	}
	status, body, _ := g.request(t, "POST", "/files?"+signed("hello.txt", "write", "root", 0).Encode(), form("x", "file", "x"), formType)
	if want := fmt.Sprintf(`[{"name":"hello.txt","type":"file","path":"%s/hello.txt"}]`, g.rootDir); status != 200 || body != want {
		t.Errorf("a signed upload as root: %d %s, want %s", status, body, want)
	}
}

const formType = "Content-Type: multipart/form-data; boundary=XX"

func form(filename, name, content string) io.Reader {
	return strings.NewReader("--XX\r\nContent-Disposition: form-data; name=\"" + name + "\"; filename=\"" + filename +
		"\"\r\nContent-Type: application/octet-stream\r\n\r\n" + content + "\r\n--XX--\r\n")
}

func TestTrap05_UploadAnswer(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	// JS gives the path in the query and "undefined" as the file name.
	status, body, _ := g.request(t, "POST", "/files?path=a.txt&username=user", form("undefined", "file", "js"), formType)
	if want := `[{"name":"a.txt","type":"file","path":"` + g.home + `/a.txt"}]`; status != 200 || body != want {
		t.Errorf("%d %s, want %s", status, body, want)
	}
	// Given no path at all it sends that name, too: nobody means such a file.
	if status, body, _ := g.request(t, "POST", "/files?path=", form("undefined", "file", "js"), formType); status != 400 {
		t.Errorf("an empty path: %d %s", status, body)
	}
	// Several files go by their names, directories and all, also below the root.
	var b strings.Builder
	var want []string
	for i := range 10 {
		path := fmt.Sprintf("%s/%d/f.txt", g.root, i)
		fmt.Fprintf(&b, "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"%s\"\r\n\r\ncontent %d\r\n", path, i)
		want = append(want, fmt.Sprintf(`{"name":"f.txt","type":"file","path":"%s"}`, path))
	}
	status, body, _ = g.request(t, "POST", "/files", strings.NewReader(b.String()+"--XX--\r\n"), formType)
	if status != 200 || body != "["+strings.Join(want, ",")+"]" {
		t.Errorf("%d %s", status, body)
	}
	fi, err := os.Stat(g.root + "/3/f.txt")
	must(t, err)
	if uid, gid := owner(fi); uid != 1000 || gid != 1000 || fi.Mode() != 0o644 {
		t.Errorf("owner %d:%d, mode %v", uid, gid, fi.Mode())
	}
	parent, err := os.Stat(g.root + "/3")
	must(t, err)
	if uid, _ := owner(parent); uid != 1000 || parent.Mode().Perm() != 0o755 {
		t.Errorf("parent: owner %d, mode %v", uid, parent.Mode())
	}
	// An encoded quote, a percent sign and UTF-8 in a name.
	status, body, _ = g.request(t, "POST", "/files", form("dir/é %22q%22 100%25.txt", "file", "x"), formType)
	if status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if _, err := os.Stat(filepath.Join(g.home, `dir/é "q" 100%25.txt`)); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]struct {
		query string
		body  io.Reader
		ct    string
	}{
		"no name":       {"", form("", "file", "x"), formType},
		"no type":       {"?path=x", form("x", "file", "x"), "Content-Type: "},
		"another type":  {"?path=x", form("x", "file", "x"), "Content-Type: text/plain"},
		"cut off":       {"?path=cut", strings.NewReader("--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nabc"), formType},
		"raw, no path":  {"", strings.NewReader("x"), "Content-Type: application/octet-stream"},
		"no parts":      {"?path=x", strings.NewReader("junk"), formType},
		"no file":       {"?path=x", form("x", "other", "x"), formType},
		"two, one path": {"?path=x", strings.NewReader(b.String() + "--XX--\r\n"), formType},
	} {
		if status, body, _ := g.request(t, "POST", "/files"+c.query, c.body, c.ct); status != 400 {
			t.Errorf("%s: %d %s", what, status, body)
		}
	}
	if _, err := os.Stat(g.home + "/cut"); err == nil {
		t.Error("half an upload was left")
	}
}

func TestWire2_1_Downloads(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	must(t, os.WriteFile(g.home+"/empty", nil, 0o644))
	must(t, os.WriteFile(g.home+"/ten", []byte("0123456789"), 0o644))
	status, body, h := g.request(t, "GET", "/files?path=empty", nil)
	if status != 200 || body != "" || h.Get("Content-Length") != "0" {
		t.Errorf("empty: %d %q, length %q", status, body, h.Get("Content-Length"))
	}
	status, body, h = g.request(t, "GET", "/files?path=ten", nil, "Accept-Encoding: gzip, deflate")
	if status != 200 || body != "0123456789" || h.Get("Content-Length") != "10" {
		t.Errorf("ten: %d %q, length %q", status, body, h.Get("Content-Length"))
	}
	status, body, _ = g.request(t, "GET", "/files?path=ten", nil, "Range: bytes=2-4")
	if status != 206 || body != "234" {
		t.Errorf("range: %d %q", status, body)
	}
	status, body, h = g.request(t, "GET", "/files?path=ten", nil, "Range: bytes=10-")
	if status != 416 || body != `{"code":416,"message":"the range is not within the file, which has 10 bytes"}` || h.Get("Content-Range") != "bytes */10" {
		t.Errorf("a range behind the end: %d %q, Content-Range %q", status, body, h.Get("Content-Range"))
	}
	status, body, _ = g.request(t, "GET", "/files?path=/proc/version", nil)
	if status != 200 || !strings.Contains(body, "version") {
		t.Errorf("a kernel file: %d %q", status, body)
	}
}

func TestFault29_OddFiles(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	must(t, mkfifo(g.dir+"/fifo"))
	must(t, os.Symlink(g.dir+"/loop", g.dir+"/loop"))
	ln, err := net.Listen("unix", g.dir+"/socket")
	must(t, err)
	defer func() { _ = ln.Close() }()
	for _, path := range []string{g.dir + "/fifo", "/dev/zero", "/dev/tty", g.dir + "/socket", g.dir, g.dir + "/loop", g.dir + "/\x00"} {
		q := "/files?path=" + url.QueryEscape(path)
		if status, body, _ := g.request(t, "GET", q, nil); status != 400 {
			t.Errorf("GET %q: %d %s", path, status, body)
		}
		if status, body, _ := g.request(t, "POST", q, form("x", "file", "x"), formType); status != 400 {
			t.Errorf("POST %q: %d %s", path, status, body)
		}
	}
	// Names that are not UTF-8 can be listed; the answer is.
	must(t, os.WriteFile(g.dir+"/bad\xff\xfename", nil, 0o644))
	status, answer := g.unary(t, "/filesystem.Filesystem/ListDir", `{"path":"`+g.dir+`"}`)
	if status != 200 || !strings.Contains(answer, "bad\uFFFDname") {
		t.Errorf("a name that is not UTF-8: %d %s", status, answer)
	}
	// A long name of its own is fine; a path of 4096 bytes is not.
	long := strings.Repeat("n", 255)
	if status, _, _ := g.request(t, "POST", "/files?path="+g.dir+"/"+long, form("x", "file", "x"), formType); status != 200 {
		t.Errorf("a name of 255 bytes: %d", status)
	}
	if status, _, _ := g.request(t, "GET", "/files?path=/"+strings.Repeat("d/", 2048), nil); status != 400 {
		t.Errorf("a path of 4096 bytes: %d", status)
	}
	// ".." stays within the root, as everywhere.
	if status, body, _ := g.request(t, "GET", "/files?path=/../../../proc/version", nil); status != 200 {
		t.Errorf("dots: %d %s", status, body)
	}
}

func TestFault15_DiskFull(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	nacretest.SmallDisk(t, g.dir, "size=1m")
	must(t, os.WriteFile(g.dir+"/old", []byte("old"), 0o666))
	big := bytes.Repeat([]byte("x"), 3<<20)
	status, body, _ := g.request(t, "POST", "/files?path="+g.dir+"/old", bytes.NewReader(big), "Content-Type: application/octet-stream")
	if status != 507 || !strings.Contains(body, `"code":507`) {
		t.Errorf("announced: %d %s", status, body)
	}
	if b, _ := os.ReadFile(g.dir + "/old"); string(b) != "old" {
		t.Errorf("the old file is now %d bytes", len(b))
	}
	// Without a length it is found out on the way.
	status, body, _ = g.request(t, "POST", "/files?path="+g.dir+"/new", struct{ io.Reader }{bytes.NewReader(big)}, "Content-Type: application/octet-stream")
	if status != 507 {
		t.Errorf("chunked: %d %s", status, body)
	}
	if _, err := os.Stat(g.dir + "/new"); err == nil {
		t.Error("half a file was left on a full disk")
	}
}
