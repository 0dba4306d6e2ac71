package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre/agent/envd/filesystempb"
	"github.com/nacrehq/nacre/agent/envd/filesystempb/filesystempbconnect"
	"github.com/nacrehq/nacre/nacretest"
)

const fsRPC = "/filesystem.Filesystem/"

// poller is a polled watcher, which Python's synchronous SDK uses.
type poller struct {
	g  *guest
	t  *testing.T
	id string
}

func (g *guest) poll(t *testing.T, path string, recursive bool) *poller {
	t.Helper()
	status, answer := g.unary(t, fsRPC+"CreateWatcher", fmt.Sprintf(`{"path":%q,"recursive":%v}`, path, recursive))
	var a struct{ WatcherID string }
	if err := json.Unmarshal([]byte(answer), &a); status != 200 || err != nil || a.WatcherID == "" {
		t.Fatalf("CreateWatcher: %d %s", status, answer)
	}
	return &poller{g, t, a.WatcherID}
}

// events returns what happened since the last call, as "create name".
func (p *poller) events() []string {
	p.t.Helper()
	status, answer := p.g.unary(p.t, fsRPC+"GetWatcherEvents", `{"watcherId":"`+p.id+`"}`)
	var a struct {
		Events []struct{ Name, Type string }
	}
	if err := json.Unmarshal([]byte(answer), &a); status != 200 || err != nil {
		p.t.Fatalf("GetWatcherEvents: %d %s", status, answer)
	}
	var out []string
	for _, e := range a.Events {
		out = append(out, strings.ToLower(strings.TrimPrefix(e.Type, "EVENT_TYPE_"))+" "+e.Name)
	}
	return out
}

func (p *poller) want(what string, want ...string) {
	p.t.Helper()
	if got := p.events(); strings.Join(got, ", ") != strings.Join(want, ", ") {
		p.t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func (g *guest) upload(t *testing.T, path string) {
	t.Helper()
	if status, body, _ := g.request(t, "POST", "/files?path="+path, form("x", "file", "content"), formType); status != 200 {
		t.Fatalf("upload: %d %s", status, body)
	}
}

// TestWire2_6_ExactWatcherCounts: the suites of the SDKs count.
func TestWire2_6_ExactWatcherCounts(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	flat, tree := g.poll(t, g.dir, false), g.poll(t, g.dir, true)
	for range 20 { // there must be no race between the upload and the question
		g.upload(t, g.dir+"/f")
		flat.want("a new file", "create f", "chmod f", "write f")
		tree.want("a new file", "create f", "chmod f", "write f")
		must(t, os.Remove(g.dir+"/f"))
		flat.want("removed", "remove f")
		tree.want("removed", "remove f")
	}
	g.unary(t, fsRPC+"MakeDir", `{"path":"`+g.dir+`/sub"}`)
	g.upload(t, g.dir+"/sub/inner")
	flat.want("a new directory", "create sub", "chmod sub")
	tree.want("a file in it", "create sub", "chmod sub", "create sub/inner", "chmod sub/inner", "write sub/inner")
	if status, answer := g.unary(t, fsRPC+"RemoveWatcher", `{"watcherId":"`+flat.id+`"}`); status != 200 || answer != "{}" {
		t.Errorf("RemoveWatcher: %d %s", status, answer)
	}
	if status, _ := g.unary(t, fsRPC+"GetWatcherEvents", `{"watcherId":"`+flat.id+`"}`); status != 404 {
		t.Errorf("a removed watcher: %d", status)
	}
}

// TestRecursiveWatch follows what moves and tells what it could not have seen.
func TestRecursiveWatch(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	w := g.poll(t, g.dir, true)
	var created []string
	for i := range 30 { // faster than any watch can follow
		must(t, os.MkdirAll(fmt.Sprintf("%s/d%d/e/f", g.dir, i), 0o755))
		must(t, os.WriteFile(fmt.Sprintf("%s/d%d/e/f/file", g.dir, i), nil, 0o644))
	}
	seen := map[string]int{}
	for _, e := range w.events() {
		seen[e]++
	}
	for i := range 30 {
		for _, name := range []string{"d%d", "d%d/e", "d%d/e/f", "d%d/e/f/file"} {
			created = append(created, fmt.Sprintf("create "+name, i))
		}
	}
	for _, e := range created {
		if seen[e] != 1 {
			t.Errorf("%q came %d times", e, seen[e])
		}
	}
	must(t, os.Rename(g.dir+"/d0", g.dir+"/moved"))
	w.want("a move within", "rename d0", "create moved")
	must(t, os.WriteFile(g.dir+"/moved/e/new", []byte("x"), 0o644))
	w.want("in the moved directory", "create moved/e/new", "write moved/e/new")
	must(t, os.Rename(g.dir+"/moved", g.root+"/outside"))
	w.want("a move out", "rename moved")
	must(t, os.WriteFile(g.root+"/outside/e/other", nil, 0o644))
	w.want("outside")
	must(t, os.Rename(g.root+"/outside", g.dir+"/back"))
	w.want("a move in", "create back")
	must(t, os.WriteFile(g.dir+"/back/e/again", nil, 0o644))
	w.want("in what came back", "create back/e/again")
	must(t, os.RemoveAll(g.dir+"/back"))
	for _, e := range w.events() {
		if !strings.HasPrefix(e, "remove back") {
			t.Errorf("while removing: %s", e)
		}
	}
	must(t, os.Symlink(g.root, g.dir+"/link")) // not followed
	w.want("a symlink", "create link")
	must(t, os.WriteFile(g.root+"/beyond", nil, 0o644))
	w.want("beyond a symlink")
}

// TestWatcherBounds: what is not fetched does not grow for ever, and losing
// events is told.
func TestWatcherBounds(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	w := g.poll(t, g.dir, false)
	for i := range 20_000 {
		name := fmt.Sprintf("%s/f%d", g.dir, i%500)
		must(t, os.WriteFile(name, []byte("x"), 0o644))
		must(t, os.Remove(name))
	}
	if n := len(w.events()); n == 0 || n > 16<<10 {
		t.Errorf("%d events were kept", n)
	}
	status, answer := g.unary(t, fsRPC+"GetWatcherEvents", `{"watcherId":"`+w.id+`"}`)
	if status != 429 || !strings.Contains(answer, "resource_exhausted") {
		t.Errorf("after a loss: %d %s", status, answer)
	}
	must(t, os.WriteFile(g.dir+"/next", nil, 0o644))
	w.want("afterwards", "create next")

	for i := 0; ; i++ {
		status, answer := g.unary(t, fsRPC+"CreateWatcher", `{"path":"`+g.dir+`"}`)
		if status == 200 && i < 1000 {
			continue
		}
		if status != 429 || i > 200 {
			t.Errorf("watcher %d: %d %s", i, status, answer)
		}
		break
	}
}

// TestWatchStream is the form that the other SDKs use, in the binary codec too.
func TestWatchStream(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	var got []string
	g.stream(t, fsRPC+"WatchDir", `{"path":"`+g.dir+`"}`, func(f frame) bool {
		got = append(got, f.json)
		if len(got) == 1 {
			g.upload(t, g.dir+"/f")
		}
		return len(got) < 4
	})
	want := []string{
		`{"start":{}}`,
		`{"filesystem":{"name":"f","type":"EVENT_TYPE_CREATE"}}`,
		`{"filesystem":{"name":"f","type":"EVENT_TYPE_CHMOD"}}`,
		`{"filesystem":{"name":"f","type":"EVENT_TYPE_WRITE"}}`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q", got)
	}
	for body, want := range map[string]string{
		`{"path":"/missing"}`:                 `2 {"error":{"code":"not_found","message":"no such file or directory: '/missing'"}}`,
		`{"path":"` + g.root + `/passwd"}`:    `2 {"error":{"code":"invalid_argument","message":"path is not a directory: '` + g.root + `/passwd'"}}`,
		`{"path":"` + g.root + `/passwd/no"}`: `2 {"error":{"code":"invalid_argument","message":"a part of the path is not a directory: '` + g.root + `/passwd/no'"}}`,
	} {
		if got := g.frames(t, fsRPC+"WatchDir", body); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q", body, got)
		}
	}
	if got := g.frames(t, fsRPC+"WatchDir", `{"path":"`+g.dir+`"}`, "Connect-Timeout-Ms: 200.5"); !strings.Contains(got[len(got)-1], "deadline_exceeded") {
		t.Errorf("a watch with a limit: %q", got)
	}
	bin := filesystempbconnect.NewFilesystemClient(httpClient, "http://"+g.addr)
	resp, err := bin.Stat(context.Background(), connect.NewRequest(&filesystempb.StatRequest{Path: g.dir}))
	must(t, err)
	if resp.Msg.GetEntry().GetOwner() != "user" {
		t.Errorf("binary codec: %v", resp.Msg)
	}
}

// TestWire2_6_Entries: how an entry looks on the wire.
func TestWire2_6_Entries(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	g.upload(t, "f")
	_, answer := g.unary(t, fsRPC+"Stat", `{"path":"f"}`)
	var a struct{ Entry map[string]any }
	must(t, json.Unmarshal([]byte(answer), &a))
	delete(a.Entry, "modifiedTime")
	got, err := json.Marshal(a.Entry)
	must(t, err)
	want := fmt.Sprintf(`{"group":"user","mode":420,"name":"f","owner":"user","path":"%s/f","permissions":"-rw-r--r--","size":"7","type":"FILE_TYPE_FILE"}`, g.home)
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, c := range []struct{ method, body, want string }{
		{"MakeDir", `{"path":"` + g.home + `"}`, `"already_exists"`},
		{"MakeDir", `{"path":"f"}`, `"invalid_argument"`},
		{"Remove", `{"path":"missing"}`, `{}`},
		{"Remove", `{"path":"/"}`, `"invalid_argument"`},
		{"Move", `{"source":"missing","destination":"x"}`, `"not_found"`},
		{"Move", `{"source":"f","destination":"deep/er/g"}`, `"deep/er/g"`},
	} {
		if _, answer := g.unary(t, fsRPC+c.method, c.body); !strings.Contains(answer, strings.Trim(c.want, `"`)) {
			t.Errorf("%s %s: %s, want %s", c.method, c.body, answer, c.want)
		}
	}
}

// TestMoveAcrossFileSystems: a rename that the kernel refuses is done by copying.
func TestMoveAcrossFileSystems(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	nacretest.SmallDisk(t, g.dir, "size=4m,mode=0777")
	must(t, os.MkdirAll(g.home+"/tree/sub", 0o750))
	must(t, os.WriteFile(g.home+"/tree/sub/f", []byte("content"), 0o640))
	must(t, os.Chown(g.home+"/tree/sub/f", 1000, 1000))
	must(t, os.Symlink("sub/f", g.home+"/tree/link"))
	if status, answer := g.unary(t, fsRPC+"Move", `{"source":"tree","destination":"`+g.dir+`/there"}`); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	b, err := os.ReadFile(g.dir + "/there/link")
	if err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	fi, err := os.Stat(g.dir + "/there/sub/f")
	must(t, err)
	if uid, _ := owner(fi); uid != 1000 || fi.Mode() != 0o640 {
		t.Errorf("owner %d, mode %v", uid, fi.Mode())
	}
	if _, err := os.Stat(g.home + "/tree"); err == nil {
		t.Error("the source is still there")
	}
	left, err := os.ReadDir(g.dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
