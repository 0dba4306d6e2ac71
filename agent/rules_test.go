package agent

import (
	"bytes"
	"errors"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
	"pgregory.net/rapid"
)

func TestResolvePath(t *testing.T) {
	for _, c := range []struct{ path, want string }{
		{"", "/work"}, {".", "/work"}, {"a/b", "/work/a/b"}, {"/a/../b", "/b"}, {"../../../x", "/x"},
		{"~", "/home/u"}, {"~/x", "/home/u/x"}, {"~x", "/work/~x"}, {"a/~", "/work/a/~"}, {"~/../x", "/home/x"},
		{"//a///b/", "/a/b"},
	} {
		if got, err := resolvePath(c.path, "/home/u", "/work"); err != nil || got != c.want {
			t.Errorf("%q: %q, %v; want %q", c.path, got, err, c.want)
		}
	}
}

func FuzzResolvePath(f *testing.F) {
	for _, s := range []string{"", "~", "/a/../..", "a\x00b", "~/\xff", strings.Repeat("x/", 3000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		got, err := resolvePath(path, "/home/u", "/work")
		if err != nil {
			if !nacre.IsCode(err, nacre.CodeInvalid) {
				t.Errorf("%q: %v", path, err)
			}
			return
		}
		if !filepath.IsAbs(got) || filepath.Clean(got) != got || strings.Contains(got, "\x00") || len(got) >= syscall.PathMax {
			t.Errorf("%q became %q", path, got)
		}
	})
}

func TestTrap07_ParseTimeout(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"500": 500 * time.Millisecond, "500.0": 500 * time.Millisecond, "0.2": time.Millisecond, "0": 0,
		"1e3": time.Second, " 7 ": 7 * time.Millisecond, "1e300": 2400 * time.Hour, "+Inf": 2400 * time.Hour,
	} {
		if got, ok := parseTimeout(text); !ok || got != want {
			t.Errorf("%q: %v %v, want %v", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "x", "NaN", "-1", "5s", "-Inf"} {
		if got, ok := parseTimeout(text); ok {
			t.Errorf("%q was taken for %v", text, got)
		}
	}
}

// TestCompleteUTF8: cutting any valid text anywhere and joining what is held
// back with what follows never splits a character.
func TestCompleteUTF8(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		cut := rapid.IntRange(0, len(text)).Draw(t, "cut")
		n := completeUTF8([]byte(text[:cut]))
		if cut-n > 3 || !utf8.ValidString(text[:n]) || !utf8.ValidString(text[n:]) {
			t.Fatalf("%q cut at %d was split at %d", text, cut, n)
		}
	})
	for in, want := range map[string]int{"": 0, "a": 1, "\xff": 1, "a\xe2": 1, "\xe2\x82": 0, "\x80\x80\x80\x80": 4, "\xf0\x9f\x98": 0, "\xc3\x28": 2} {
		if got := completeUTF8([]byte(in)); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}

func TestPartNames(t *testing.T) {
	for header, want := range map[string][2]string{
		`form-data; name="file"; filename="a/b/c.txt"`:           {"file", "a/b/c.txt"},
		`form-data; name="file"; filename="/abs/c.txt"`:          {"file", "/abs/c.txt"},
		`form-data; name="file"; filename="q%22x%0Ay"`:           {"file", "q\"x\ny"},
		`form-data; name="file"; filename="100%25 50%"`:          {"file", "100%25 50%"},
		`form-data; name="file"; filename="back\\slash"`:         {"file", `back\slash`},
		`form-data; name="file"; filename*=UTF-8''%C3%A9%2Fx`:    {"file", "é/x"},
		`form-data; name="field"`:                                {"field", ""},
		`FORM-DATA; NAME=file; FILENAME=plain`:                   {"file", "plain"},
		`form-data; name="file"; filename="é"; extra="ignored" `: {"file", "é"},
	} {
		name, filename, err := partNames(header)
		if err != nil || name != want[0] || filename != want[1] {
			t.Errorf("%s: %q %q %v", header, name, filename, err)
		}
	}
	for _, header := range []string{"", "attachment; filename=x", `form-data; name="a"; name="b"`, `form-data; filename="`} {
		if _, _, err := partNames(header); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("%q: %v", header, err)
		}
	}
}

func FuzzPartNames(f *testing.F) {
	f.Add(`form-data; name="file"; filename="a/b%22"`)
	f.Add(`form-data; name="file"; filename*=UTF-8''%C3`)
	f.Fuzz(func(t *testing.T, header string) {
		_, filename, err := partNames(header)
		if err != nil {
			return
		}
		if _, err := resolvePath(filename, "/h", "/h"); err != nil && !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Error(err)
		}
	})
}

// FuzzUpload feeds whole multipart bodies: each ends in an answer or an error,
// and writes nothing outside of the directory unless a name says so.
func FuzzUpload(f *testing.F) {
	f.Add([]byte("--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a/b\"\r\n\r\nabc\r\n--XX--\r\n"))
	f.Add([]byte("--XX\r\n\r\n--XX--"))
	f.Add([]byte("--XX\r\nContent-Disposition: form-data; name=\"file\"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=\r\n--XX"))
	dir := f.TempDir()
	a := &Agent{watchers: newWatcherTable()}
	f.Fuzz(func(t *testing.T, body []byte) {
		acc := account{uid: uint32(os.Getuid()), gid: uint32(os.Getgid()), home: dir}
		mr := multipart.NewReader(bytes.NewReader(body), "XX")
		answer, err := a.uploadParts(acc, mr, url.Values{"path": {"f"}}, -1)
		if err == nil && len(answer) > 1 {
			t.Errorf("one path, %d files", len(answer))
		}
		if err != nil && nacre.ErrorCode(err) == nacre.CodeInternal {
			t.Errorf("a bad body is our fault: %v", err)
		}
	})
}

func TestFault37_FileAccess(t *testing.T) {
	const token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"
	now := time.Unix(1_700_000_000, 0)
	query := func(s string) url.Values { q, _ := url.ParseQuery(s); return q }
	good := "path=hello.txt&username=user&signature=" + url.QueryEscape("v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E")
	for _, c := range []struct {
		what, header, query, op string
		want                    string
	}{
		{"header", token, "", "read", ""},
		{"wrong header, good signature", "x", good, "read", "invalid access token"},
		{"signature", "", good, "read", ""},
		{"other operation", "", good, "write", "invalid signature"},
		{"nothing", "", "path=hello.txt", "read", "missing signature query parameter or X-Access-Token header"},
		{"bad expiration", "", good + "&signature_expiration=soon", "read", "invalid signature expiration"},
		{"expiration that was not signed", "", good + "&signature_expiration=99999999999", "read", "invalid signature"},
	} {
		h := http.Header{}
		if c.header != "" {
			h.Set(envd.HeaderAccessToken, c.header)
		}
		err := checkFileAccess(token, h, query(c.query), c.op, now)
		if (err == nil) != (c.want == "") || err != nil && (nacre.ErrorMessage(err) != c.want || !nacre.IsCode(err, nacre.CodeUnauthenticated)) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
	for exp, want := range map[int64]string{now.Unix() + 1: "", now.Unix() - 1: "signature is already expired", -100: "signature is already expired"} {
		q := url.Values{"path": {"x"}, "signature": {envd.Signature("x", "read", "", token, exp)}, "signature_expiration": {strconv.FormatInt(exp, 10)}}
		err := checkFileAccess(token, http.Header{}, q, "read", now)
		if (err == nil) != (want == "") || err != nil && nacre.ErrorMessage(err) != want {
			t.Errorf("expiration %d: %v", exp, err)
		}
	}
	if err := checkFileAccess("", http.Header{}, url.Values{}, "read", now); err != nil {
		t.Errorf("an open sandbox: %v", err)
	}
}

func FuzzFileAccess(f *testing.F) {
	f.Add("", "path=x&signature=v1_", "read")
	f.Add("token ", "signature_expiration=-1&signature=x", "write")
	f.Fuzz(func(t *testing.T, header, query, op string) {
		const token = "the token of this sandbox, 32 characters"
		q, err := url.ParseQuery(query)
		if err != nil || header == token {
			return
		}
		h := http.Header{}
		h.Set(envd.HeaderAccessToken, header)
		if checkFileAccess(token, h, q, op, time.Now()) == nil {
			t.Errorf("%q opened it", query)
		}
	})
}

func TestAccounts(t *testing.T) {
	dir := t.TempDir()
	u := &accounts{passwdPath: dir + "/passwd", groupPath: dir + "/group"}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := u.lookup("root"); !nacre.IsCode(err, nacre.CodeUnauthenticated) {
		t.Errorf("without files: %v", err)
	}
	write("passwd", "root:x:0:0:r:/root:/bin/sh\nann:x:5:50::relative:/bin/sh\nbad:x:no:1::/:/\nann:x:6:6::/second:/bin/sh\n#c:x:1:1::/:\n:x:9:9::/:\nshort:x:1\nbig:x:99999999999:1::/:\n")
	write("group", "root:x:0:ann\nwheel:x:7:root,ann\nbad:x:-1:ann\nann:x:50:ann\n")
	ann, err := u.lookup("ann")
	if err != nil || ann.uid != 5 || ann.gid != 50 || ann.home != "/" || len(ann.groups) != 3 || ann.groups[2] != 50 {
		t.Errorf("%+v %v", ann, err)
	}
	if u.userName(5) != "ann" || u.userName(77) != "77" || u.groupName(7) != "wheel" || u.groupName(78) != "78" {
		t.Error("names of numbers")
	}
	for _, name := range []string{"bad", "short", "big", "", "c", "ghost'\xff"} {
		_, err := u.lookup(name)
		if want := "invalid username: '" + validText(name) + "'"; !nacre.IsCode(err, nacre.CodeUnauthenticated) || nacre.ErrorMessage(err) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
	// A user that is added is known at once; a FIFO in the file's place hangs nobody.
	write("passwd", "bob:x:8:8::/home/bob:/bin/sh\n")
	if bob, err := u.lookup("bob"); err != nil || bob.home != "/home/bob" {
		t.Errorf("%+v %v", bob, err)
	}
	if err := errors.Join(os.Remove(dir+"/passwd"), syscall.Mkfifo(dir+"/passwd", 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := u.lookup("bob"); err == nil {
		t.Error("a FIFO has users")
	}
}

// TestInitChangesTheMachine: what an Init asks of it, with an /etc of the test's own.
func TestInitChangesTheMachine(t *testing.T) {
	etc := t.TempDir()
	if err := os.Symlink("/missing/resolver", etc+"/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	var at time.Time
	var name string
	var seed []byte
	a := New(Config{System: &System{
		EtcDir:      etc,
		DBusID:      etc + "/dbus-id",
		SetTime:     func(t time.Time) error { at = t; return syscall.EPERM },
		SetHostname: func(s string) error { name = s; return nil },
		AddEntropy:  func(b []byte) error { seed = b; return nil },
	}})
	defer a.Close()
	then := time.Now().Add(time.Hour)
	in := envd.InitRequest{Hostname: "box\n1.2.3.4 evil", DNS: "10.0.0.1", Timestamp: then, Entropy: []byte("seed")}
	a.applySystem(&in)
	if !at.Equal(then) || name != "box1.2.3.4evil" || string(seed) != "seed" {
		t.Errorf("time %v, name %q, seed %q", at, name, seed)
	}
	file := func(n string) string { b, _ := os.ReadFile(etc + "/" + n); return string(b) }
	if file("hostname") != name+"\n" || !strings.Contains(file("hosts"), "127.0.1.1 "+name+"\n") || !strings.HasPrefix(file("resolv.conf"), "nameserver 10.0.0.1\n") {
		t.Errorf("%q %q %q", file("hostname"), file("hosts"), file("resolv.conf"))
	}
	first := file("machine-id")
	in.Entropy = []byte("another")
	if err := errors.Join(os.WriteFile(etc+"/hosts", []byte("the user's"), 0o644), os.WriteFile(etc+"/dbus-id", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	a.applySystem(&in)
	if file("machine-id") != first || file("hosts") != "the user's" || string(seed) != "another" {
		t.Errorf("a repeat changed the machine: %q, %q, seed %q", file("machine-id"), file("hosts"), seed)
	}
	// A copy has its own; D-Bus's file follows where there is one.
	in.Hostname, in.NewIdentity = "copy", true
	a.applySystem(&in)
	if file("dbus-id") != file("machine-id") {
		t.Errorf("D-Bus knows the machine as %q", file("dbus-id"))
	}
	if len(first) != 33 || file("machine-id") == first || file("hostname") != "copy\n" || !strings.Contains(file("hosts"), "copy") {
		t.Errorf("machine ids %q and %q, name %q", first, file("machine-id"), file("hostname"))
	}
	at = time.Time{}
	in.Timestamp, in.DNS = time.Now(), "not an address\nnameserver 6.6.6.6"
	a.applySystem(&in)
	if !at.IsZero() || strings.Contains(file("resolv.conf"), "6.6.6.6") {
		t.Errorf("a right clock was set to %v; resolver %q", at, file("resolv.conf"))
	}
}

func TestLogRing(t *testing.T) {
	l := newLogRing(10_000)
	for i := range 1000 {
		l.add(nacre.LogEntry{Type: nacre.LogStdout, Message: strings.Repeat("x", i%300)})
	}
	got, _ := l.after(0, 1<<20)
	if len(got) == 0 || got[len(got)-1].Seq != 1000 {
		t.Fatalf("%d entries", len(got))
	}
	size := 0
	for i, e := range got {
		size += sizeOf(e)
		if e.Seq != got[0].Seq+int64(i) {
			t.Errorf("entry %d has number %d", i, e.Seq)
		}
	}
	if size > 10_000 || size < 9_000 {
		t.Errorf("%d bytes are kept", size)
	}
	if some, _ := l.after(998, 10); len(some) != 2 {
		t.Errorf("after 998: %d", len(some))
	}
	none, grown := l.after(5000, 10)
	if len(none) != 0 {
		t.Errorf("after a future number: %d", len(none))
	}
	l.add(nacre.LogEntry{})
	<-grown
}

// TestFault19_LogOfAFirehose: long lines are cut, too many are counted.
func TestFault19_LogOfAFirehose(t *testing.T) {
	logs := newLogRing(maxLogBytes)
	pm := &pump{p: &process{pid: 1, logs: logs}, kind: streamStdout}
	pm.lines.add(pm, bytes.Repeat([]byte("a"), 40<<10))
	pm.lines.add(pm, []byte("\nshort\r\n"))
	got, _ := logs.after(0, 100)
	if len(got) != 4 || len(got[0].Message) != maxLogLine || len(got[2].Message) != 8<<10 || got[3].Message != "short" {
		t.Fatalf("%d entries", len(got))
	}
	at := time.Now()
	logs.clock = func() time.Time { return at } // no second goes by, and the allowance is not renewed
	allow := func(on bool) { logs.second, logs.taken = at.Unix(), map[bool]int{false: maxLogRate}[on] }
	for range 1000 {
		allow(false)
		pm.lines.add(pm, bytes.Repeat([]byte("b\n"), 1<<10))
	}
	allow(true)
	pm.lines.add(pm, []byte("tail of a line\nwhole\n"))
	got, _ = logs.after(4, 100)
	if len(got) != 2 || got[0].Fields["dropped_bytes"] != strconv.Itoa(1000*2048+15) || got[1].Message != "whole" {
		t.Errorf("%+v", got)
	}
}
