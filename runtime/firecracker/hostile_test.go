package firecracker

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/thread"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// hostileGuest is a machine whose first program answers as it likes: only what the driver
// asks of it is there.
func hostileGuest(t *testing.T, answer func(verb string, c net.Conn)) *machine {
	t.Helper()
	spec := newSpec(t)
	var l net.Listener
	check(t, thread.InNetwork(spec.Slot.Path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(wire.GuestAddr + "/32")
		if err != nil {
			return err
		}
		if err := h.AddrAdd(lo, addr); err != nil {
			return err
		}
		if err := h.LinkSetUp(lo); err != nil {
			return err
		}
		l, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", wire.GuestAddr, wire.DialPort))
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				line, _ := bufio.NewReader(c).ReadString('\n')
				verb, _, _ := strings.Cut(strings.TrimSpace(line), " ")
				answer(verb, c)
			}()
		}
	}()
	jail := jail{root: t.TempDir()}
	vmm, err := net.Listen("unix", filepath.Join(jail.root, apiName))
	check(t, err)
	s := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })}
	go func() { _ = s.Serve(vmm) }()
	t.Cleanup(func() { s.Close() })
	return &machine{r: &Runtime{}, st: state{Upper: spec.Root.UpperDir, Slot: slotName{Path: spec.Slot.Path}}, jail: jail, api: newAPI(jail.root, apiName)}
}

// TestSlowGuestDelaysItsSnapshotLittle: a guest that takes as long as it can for each
// answer holds its snapshot up, for which others' wait, by a few seconds and no more.
func TestSlowGuestDelaysItsSnapshotLittle(t *testing.T) {
	t.Run("disk", func(t *testing.T) {
		const mib = 64
		var frozen atomic.Bool
		m := hostileGuest(t, func(verb string, c net.Conn) {
			switch verb {
			case "used":
				time.Sleep(950 * time.Millisecond)
				fmt.Fprint(c, "ok\n0\n")
			case "sync":
				time.Sleep(950 * time.Millisecond)
				fmt.Fprint(c, "ok\n")
			case "freeze":
				frozen.Store(true)
				time.Sleep(1900 * time.Millisecond)
				fmt.Fprint(c, "ok\n")
				_ = wire.WriteExtents(c, nil)
				_, _ = c.Read(make([]byte, 100)) // "go on", to which it says nothing
				_, _ = c.Read(make([]byte, 100))
			}
		})
		check(t, os.WriteFile(filepath.Join(m.st.Upper, upperFile), make([]byte, mib<<20), 0o600))
		begin := time.Now()
		_, err := m.trim(t.Context(), mib<<20)
		if took := time.Since(begin); err == nil || !frozen.Load() || took > trimPatience+2*trimStill {
			t.Errorf("%v after %v; asked to hold still: %t", err, took, frozen.Load())
		}
	})
	t.Run("memory", func(t *testing.T) {
		free := int64(4 << 10)
		m := hostileGuest(t, func(_ string, c net.Conn) {
			fmt.Fprintf(c, "ok\n%d\n", atomic.AddInt64(&free, -1))
		})
		begin := time.Now()
		least, err := m.squeezeTo(t.Context(), 4<<10, 64)
		if took := time.Since(begin); err != nil || least >= 4<<10 || took > balloonMost+time.Second {
			t.Errorf("%d MiB, %v after %v", least, err, took)
		}
	})
	t.Run("numbers", func(t *testing.T) {
		for _, n := range []string{"-1", "99999999999", "x", ""} {
			m := hostileGuest(t, func(_ string, c net.Conn) { fmt.Fprintf(c, "ok\n%s\n", n) })
			if got, err := m.askMiB(t.Context(), "free"); err == nil {
				t.Errorf("%q was taken for %d", n, got)
			}
		}
	})
}

// TestVMMPutsOthersFilesInPlace: a VMM that was taken over, and puts links to the host's
// files and sockets, or what cannot be opened, in the place of its own, gets none of them
// read, changed, moved or spoken to, and cannot keep its machine from ending.
func TestVMMPutsOthersFilesInPlace(t *testing.T) {
	m, _ := startMachine(t)
	others := t.TempDir()
	for _, f := range []string{stateFile, memFile} {
		check(t, os.WriteFile(filepath.Join(others, f), []byte("another's"), 0o600))
	}
	intact := func(what string) {
		t.Helper()
		for _, f := range []string{stateFile, memFile} {
			b, err := os.ReadFile(filepath.Join(others, f))
			st, serr := os.Stat(filepath.Join(others, f))
			if err != nil || serr != nil || string(b) != "another's" || st.Mode() != 0o600 {
				t.Errorf("%s: another's %s is %q, %v, %v", what, f, b, err, st)
			}
		}
	}
	place := func(name, target string) {
		t.Helper()
		name = filepath.Join(m.jail.root, name)
		check(t, os.RemoveAll(name))
		check(t, os.Symlink(target, name))
	}
	snapshot := func(what string) {
		t.Helper()
		if _, err := m.Snapshot(t.Context(), t.TempDir(), nacre.SnapshotOptions{KeepRunning: true}); err == nil {
			t.Errorf("%s: a snapshot was taken", what)
		}
		intact(what)
	}
	place(saveDir, others)
	snapshot("a link for a directory")
	check(t, os.Remove(filepath.Join(m.jail.root, saveDir)))
	check(t, unix.Mkfifo(filepath.Join(m.jail.root, saveDir), 0o666))
	snapshot("a pipe for a directory")

	check(t, os.Remove(filepath.Join(m.jail.root, saveDir)))
	check(t, os.Mkdir(filepath.Join(m.jail.root, saveDir), 0o755))
	s := &saving{m: m, dir: t.TempDir()}
	for what, make := range map[string]func(name string) error{
		"a link for a file":        func(n string) error { return os.Symlink(filepath.Join(others, stateFile), n) },
		"a pipe for a file":        func(n string) error { return unix.Mkfifo(n, 0o666) },
		"a shared file for a file": func(n string) error { return os.Link(filepath.Join(m.jail.root, rootName), n) },
	} {
		name := filepath.Join(m.jail.root, saveDir, stateFile)
		check(t, make(name))
		if err := s.take(stateFile); err == nil {
			t.Errorf("%s was taken", what)
		}
		check(t, os.Remove(name))
		intact(what)
	}
	name := filepath.Join(m.jail.root, saveDir, memFile)
	check(t, os.WriteFile(name, []byte("more, or less, than the guest has"), 0o600))
	check(t, os.Chown(name, m.jail.uid, m.jail.uid))
	if err := s.take(memFile); err == nil {
		t.Error("memory of another size was taken")
	}
	takeTurns(t, s, filepath.Join(others, stateFile))
	intact("two files that change places")

	// A daemon of the host's, that would listen to root.
	l, err := net.Listen("unix", filepath.Join(others, "socket"))
	check(t, err)
	defer l.Close()
	spoken := make(chan struct{})
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
			close(spoken)
		}
	}()
	for _, name := range []string{apiName, vsockName} {
		place(name, filepath.Join(others, "socket"))
		if c, err := dialSocket(t.Context(), m.jail.root, name); err == nil {
			c.Close()
			t.Errorf("%s led to a socket of the host's", name)
		}
	}
	select {
	case <-spoken:
		t.Error("a socket of the host's was spoken to")
	default:
	}

	check(t, os.Remove(filepath.Join(m.jail.root, upperName)))
	check(t, unix.Mkfifo(filepath.Join(m.jail.root, upperName), 0o666))
	check(t, unix.Kill(m.Proc.PID, unix.SIGKILL))
	ended(t, m, "")
}

// takeTurns has a file of the VMM's and a link change places while the file is taken.
func takeTurns(t *testing.T, s *saving, target string) {
	t.Helper()
	name, link := filepath.Join(s.m.jail.root, saveDir, stateFile), filepath.Join(s.m.jail.root, saveDir, "link")
	check(t, os.Symlink(target, link))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	}()
	taken := 0
	for range 300 {
		check(t, os.RemoveAll(link))
		check(t, os.RemoveAll(name))
		check(t, os.WriteFile(name, nil, 0o600))
		_ = os.Chown(name, s.m.jail.uid, s.m.jail.uid)
		check(t, os.Symlink(target, link))
		if err := s.take(stateFile); err == nil {
			taken++
		}
		dst := filepath.Join(s.dir, stateFile)
		if st, err := os.Lstat(dst); err == nil && st.Mode().IsRegular() && st.Mode() != 0o644 {
			t.Fatalf("%v was taken", st.Mode())
		}
		_ = os.Remove(dst)
	}
	close(stop)
	<-stopped
	t.Logf("of 300 files that change places with a link %d were taken", taken)
}
