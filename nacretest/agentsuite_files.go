package nacretest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nacrehq/nacre"
)

func agentFilesRoundTrip(t *testing.T, b *agentBench) {
	f := b.Files()
	for _, n := range []int{0, 1, 4096, 300_000, 5_000_000} {
		path := b.Dir + "/made/by write/" + strconv.Itoa(n)
		want := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
		info, err := f.Write(b.ctx, "", path, iotest.HalfReader(bytes.NewReader(want)))
		mustAgent(t, err)
		if info.Path != path || info.Name != strconv.Itoa(n) || info.Size != int64(n) || info.Dir ||
			info.Mode != 0o644 || info.Permissions != "-rw-r--r--" || info.Owner != b.User || time.Since(info.ModTime).Abs() > time.Minute {
			t.Errorf("written: %+v", info)
		}
		r, size, err := f.Read(b.ctx, "", path)
		mustAgent(t, err)
		got, err := io.ReadAll(r)
		mustAgent(t, errors.Join(err, r.Close()))
		if size != int64(n) || !bytes.Equal(got, want) {
			t.Errorf("%d bytes written, %d announced, %d read, equal %v", n, size, len(got), bytes.Equal(got, want))
		}
	}
	dir, err := f.Stat(b.ctx, "", b.Dir+"/made")
	mustAgent(t, err)
	if !dir.Dir || dir.Mode != 0o755 || dir.Owner != b.User {
		t.Errorf("a made parent: %+v", dir)
	}
	// A shorter content replaces all of a longer one.
	path := b.Dir + "/made/by write/300000"
	_, err = f.Write(b.ctx, "", path, strings.NewReader("short"))
	mustAgent(t, err)
	if r := b.sh(t, "cat '"+path+"'"); r.out != "short" {
		t.Errorf("after a shorter write the file begins with %.20q", r.out)
	}
	// Relative paths and "~" are the home, which is where commands run.
	info, err := f.Write(b.ctx, "", "relative.txt", strings.NewReader("x"))
	mustAgent(t, err)
	home, err := f.Stat(b.ctx, "", "~/relative.txt")
	mustAgent(t, err)
	if info.Path != b.Home+"/relative.txt" || home.Path != info.Path {
		t.Errorf("relative %q, of the home %q", info.Path, home.Path)
	}
	mustAgent(t, f.Remove(b.ctx, "", "relative.txt"))
}

func agentFilesTree(t *testing.T, b *agentBench) {
	f, d := b.Files(), b.Dir
	_, err := f.MakeDir(b.ctx, "", d+"/b/c")
	mustAgent(t, err)
	for _, name := range []string{"/z", "/a", "/b/2", "/b/1", "/b/c/deep"} {
		_, err := f.Write(b.ctx, "", d+name, strings.NewReader(name))
		mustAgent(t, err)
	}
	names := func(depth int) string {
		list, err := f.List(b.ctx, "", d, depth)
		mustAgent(t, err)
		var out []string
		for _, i := range list {
			out = append(out, strings.TrimPrefix(i.Path, d+"/"))
		}
		return strings.Join(out, " ")
	}
	if got := names(1); got != "a b z" {
		t.Errorf("depth 1: %s", got)
	}
	if got := names(0); got != "a b z" {
		t.Errorf("depth 0 means 1: %s", got)
	}
	if got := names(2); got != "a b b/1 b/2 b/c z" {
		t.Errorf("depth 2: %s", got)
	}
	if got := names(9); got != "a b b/1 b/2 b/c b/c/deep z" {
		t.Errorf("depth 9: %s", got)
	}
	moved, err := f.Move(b.ctx, "", d+"/b", d+"/new/place")
	mustAgent(t, err)
	if moved.Path != d+"/new/place" || !moved.Dir {
		t.Errorf("moved: %+v", moved)
	}
	mustAgent(t, f.Remove(b.ctx, "", d+"/new"))
	mustAgent(t, f.Remove(b.ctx, "", d+"/new"))
	if got := names(9); got != "a z" {
		t.Errorf("after move and remove: %s", got)
	}
	b.sh(t, "ln -s "+d+"/a "+d+"/link; ln -s gone "+d+"/dangling")
	link, err := f.Stat(b.ctx, "", d+"/link")
	mustAgent(t, err)
	if link.Name != "link" || link.Symlink != d+"/a" || link.Dir || link.Mode != 0o644 || !strings.HasPrefix(link.Permissions, "L") {
		t.Errorf("a symlink: %+v", link)
	}
	dangling, err := f.Stat(b.ctx, "", d+"/dangling")
	mustAgent(t, err)
	if dangling.Symlink != d+"/gone" {
		t.Errorf("a dangling symlink: %+v", dangling)
	}
}

func agentFilesErrors(t *testing.T, b *agentBench) {
	f, d := b.Files(), b.Dir
	_, err := f.Write(b.ctx, "", d+"/file", strings.NewReader("x"))
	mustAgent(t, err)
	_, err = f.MakeDir(b.ctx, "", d+"/dir/full")
	mustAgent(t, err)
	read := func(path string) error { _, _, err := f.Read(b.ctx, "", path); return err }
	stat := func(path string) error { _, err := f.Stat(b.ctx, "", path); return err }
	list := func(path string) error { _, err := f.List(b.ctx, "", path, 1); return err }
	mkdir := func(path string) error { _, err := f.MakeDir(b.ctx, "", path); return err }
	write := func(path string) error { _, err := f.Write(b.ctx, "", path, strings.NewReader("y")); return err }
	move := func(from, to string) error { _, err := f.Move(b.ctx, "", from, to); return err }
	long := d + "/" + strings.Repeat("n", 300)
	for _, c := range []struct {
		what string
		err  error
		code nacre.Code
	}{
		{"read missing", read(d + "/missing"), nacre.CodeNotFound},
		{"read a directory", read(d + "/dir"), nacre.CodeInvalid},
		{"read a device", read("/dev/zero"), nacre.CodeInvalid},
		{"stat missing", stat(d + "/missing"), nacre.CodeNotFound},
		{"list missing", list(d + "/missing"), nacre.CodeNotFound},
		{"list a file", list(d + "/file"), nacre.CodeInvalid},
		{"make an existing directory", mkdir(d + "/dir"), nacre.CodeConflict},
		{"make a directory over a file", mkdir(d + "/file"), nacre.CodeInvalid},
		{"make a directory below a file", mkdir(d + "/file/x"), nacre.CodeInvalid},
		{"write over a directory", write(d + "/dir"), nacre.CodeInvalid},
		{"write below a file", write(d + "/file/x"), nacre.CodeInvalid},
		{"write to a device", write("/dev/null"), nacre.CodeInvalid},
		{"write a name that is too long", write(long), nacre.CodeInvalid},
		{"write a path that is too long", write(d + "/" + strings.Repeat("d/", 2100)), nacre.CodeInvalid},
		{"read a path with NUL", read(d + "/a\x00b"), nacre.CodeInvalid},
		{"move missing", move(d+"/missing", d+"/x"), nacre.CodeNotFound},
		{"move a file over a directory that is not empty", move(d+"/file", d+"/dir"), nacre.CodeConflict},
	} {
		if c.what == "move a file over a directory that is not empty" {
			if c.err == nil {
				t.Errorf("%s: no error", c.what)
			}
			continue
		}
		wantAgentCode(t, c.what, c.err, c.code)
	}
}

func agentBrokenUpload(t *testing.T, b *agentBench) {
	broken := io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), iotest.ErrReader(errors.New("the source broke")))
	_, err := b.Files().Write(b.ctx, "", b.Dir+"/half", broken)
	if err == nil || !strings.Contains(err.Error(), "the source broke") {
		t.Errorf("a broken source: %v", err)
	}
	// The guest notices the broken connection on its own time.
	if r := b.sh(t, "n=0; while [ -e "+b.Dir+"/half ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done; ls "+b.Dir); r.out != "" {
		t.Errorf("half a file was left: %q", r.out)
	}
}

func agentWatch(t *testing.T, b *agentBench) {
	f, d := b.Files(), b.Dir
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	ready := make(chan struct{})
	events := make(chan nacre.FileEvent, 64)
	ended := make(chan error, 1)
	go func() {
		ended <- f.Watch(ctx, "", d, true, func() { close(ready) }, func(e nacre.FileEvent) error {
			events <- e
			return nil
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	want := func(name string, op nacre.FileOp) {
		t.Helper()
		select {
		case e := <-events:
			if e.Name != name || e.Op != op {
				t.Errorf("got %+v, want %s of %s", e, op, name)
			}
		case err := <-ended:
			t.Fatalf("the watch ended: %v", err)
		case <-b.ctx.Done():
			t.Fatalf("no %s of %s came", op, name)
		}
	}
	_, err := f.Write(b.ctx, "", d+"/new", strings.NewReader("x"))
	mustAgent(t, err)
	want("new", nacre.FileCreate)
	want("new", nacre.FileChmod)
	want("new", nacre.FileWrite)
	_, err = f.MakeDir(b.ctx, "", d+"/sub")
	mustAgent(t, err)
	want("sub", nacre.FileCreate)
	want("sub", nacre.FileChmod)
	_, err = f.Write(b.ctx, "", d+"/sub/inner", strings.NewReader("x"))
	mustAgent(t, err)
	want("sub/inner", nacre.FileCreate)
	want("sub/inner", nacre.FileChmod)
	want("sub/inner", nacre.FileWrite)
	_, err = f.Move(b.ctx, "", d+"/new", d+"/newer")
	mustAgent(t, err)
	want("new", nacre.FileRename)
	want("newer", nacre.FileCreate)
	mustAgent(t, f.Remove(b.ctx, "", d+"/newer"))
	want("newer", nacre.FileRemove)
	cancel()
	if err := <-ended; err == nil {
		t.Error("a watch that was given up ended without an error")
	}
	nothing := func(nacre.FileEvent) error { return nil }
	wantAgentCode(t, "watch missing", f.Watch(b.ctx, "", d+"/missing", false, func() {}, nothing), nacre.CodeNotFound)
	wantAgentCode(t, "watch a file", f.Watch(b.ctx, "", d+"/sub/inner", false, func() {}, nothing), nacre.CodeInvalid)
}

func agentUnknownUser(t *testing.T, b *agentBench) {
	f, u := b.Files(), "nobody-of-that-name"
	_, _, read := f.Read(b.ctx, u, "/etc/passwd")
	_, write := f.Write(b.ctx, u, b.Dir+"/x", strings.NewReader(""))
	_, stat := f.Stat(b.ctx, u, "/")
	_, list := f.List(b.ctx, u, "/", 1)
	for what, err := range map[string]error{"Read": read, "Write": write, "Stat": stat, "List": list, "Remove": f.Remove(b.ctx, u, b.Dir)} {
		wantAgentCode(t, what, err, nacre.CodeUnauthenticated)
		if got := nacre.ErrorMessage(err); got != "invalid username: '"+u+"'" {
			t.Errorf("%s: message %q", what, got)
		}
	}
}
