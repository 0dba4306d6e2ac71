package kvmhost

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// archive writes an initramfs in cpio's "newc" format.
type archive struct {
	w    *bufio.Writer
	ino  int
	dirs map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{".": true}}
}

func (a *archive) header(name string, mode uint32, size int64, major, minor uint32) {
	a.ino++
	a.print("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", a.ino, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0)
	a.print("%s\x00", name)
	a.pad(110 + int64(len(name)) + 1)
}

func (a *archive) print(format string, args ...any) {
	if a.err == nil {
		_, a.err = fmt.Fprintf(a.w, format, args...)
	}
}

func (a *archive) pad(n int64) { a.print("%s", strings.Repeat("\x00", int(-n&3))) }

func (a *archive) dir(name string) {
	if a.dirs[name] || name == "/" {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	a.header(name, 0o40755, 0, 0, 0)
}

func (a *archive) console() { a.dir("dev"); a.header("dev/console", 0o20600, 0, 5, 1) }

func (a *archive) bytes(name string, b []byte) {
	a.dir(path.Dir(name))
	a.header(name, 0o100644, int64(len(b)), 0, 0)
	a.print("%s", b)
	a.pad(int64(len(b)))
}

func (a *archive) file(name, src string) {
	f, err := os.Open(src)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	a.dir(path.Dir(name))
	a.header(name, 0o100755, st.Size(), 0, 0)
	if a.err == nil {
		_, a.err = io.CopyN(a.w, f, st.Size())
	}
	a.pad(st.Size())
}

func (a *archive) close() error {
	a.header("TRAILER!!!", 0, 0, 0, 0)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}
