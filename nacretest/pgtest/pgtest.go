// Package pgtest runs a PostgreSQL server of a test's own: in a temporary
// directory, on a unix socket, as a user without rights, and gone afterwards.
package pgtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrMissing tells that no PostgreSQL server is installed here.
var ErrMissing = errors.New("no PostgreSQL server is installed (looked for initdb in $PATH and /usr/lib/postgresql/*/bin); " +
	"install Debian's postgresql package, or set NACRE_SKIP_POSTGRES=1 to leave out what needs it")

// Server is one running PostgreSQL.
type Server struct {
	bin, dir string
	cred     *syscall.Credential
	next     atomic.Int64

	mu     sync.Mutex
	proc   *os.Process
	exited chan struct{}
}

// Skip skips the test, with its reason, when NACRE_SKIP_POSTGRES is set.
func Skip(t testing.TB) {
	t.Helper()
	if os.Getenv("NACRE_SKIP_POSTGRES") != "" {
		t.Skip("needs PostgreSQL, and NACRE_SKIP_POSTGRES is set")
	}
}

// Start launches a server for one test and stops it when the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	Skip(t)
	s, err := Launch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("stopping PostgreSQL: %v", err)
		}
	})
	return s
}

// Launch makes a database cluster and starts a server on it. Its default
// collation is not that of bytes, so that a query that relies on one is caught.
func Launch() (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	cred, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pgtest-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir, cred: cred}
	if cred != nil {
		err = os.Chown(dir, int(cred.Uid), int(cred.Gid))
	}
	if err == nil {
		err = s.initdb()
	}
	if err == nil {
		err = s.Up()
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return s, nil
}

// binaries returns the directory of the newest server that is installed.
func binaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", ErrMissing
	}
	slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(found[len(found)-1]), nil
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// unprivileged returns whom to run the server as: it refuses to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
		if uerr == nil && gerr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"LC_ALL=C.UTF-8", "TZ=UTC", "PATH=" + s.bin + ":/usr/bin:/bin"}
	// A test that is killed takes the server with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	return cmd
}

func (s *Server) initdb() error {
	cmd := s.command("initdb", "-D", filepath.Join(s.dir, "data"), "-U", "nacre", "-A", "trust", "-E", "UTF8", "--no-sync",
		"--locale-provider=icu", "--icu-locale=en-US")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

// Up starts the server, which must not be running, and returns when it takes
// connections. Its settings are those of production: what is committed is synced.
func (s *Server) Up() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cmd := s.command("postgres", "-D", filepath.Join(s.dir, "data"), "-k", s.dir, "-c", "listen_addresses=",
		"-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "max_connections=200", "-c", "shared_buffers=256MB")
	log, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	started, ready, exited := make(chan error, 1), make(chan struct{}), make(chan struct{})
	var tail bytes.Buffer
	go func() {
		defer close(exited)
		// The kernel's death signal comes when the thread dies that started the
		// server, so this one stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		watch(log, &tail, ready)
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		return err
	}
	select {
	case <-ready:
	case <-exited:
		return fmt.Errorf("postgres ended at once:\n%s", tail.String())
	case <-time.After(60 * time.Second):
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		<-exited
		return fmt.Errorf("postgres does not take connections:\n%s", tail.String())
	}
	s.proc, s.exited = cmd.Process, exited
	return nil
}

// watch reads the server's log to its end and keeps the first 64 KiB.
func watch(log io.Reader, keep *bytes.Buffer, ready chan struct{}) {
	told := false
	for sc := bufio.NewScanner(log); sc.Scan(); {
		if keep.Len() < 64<<10 {
			keep.WriteString(sc.Text() + "\n")
		}
		if !told && strings.Contains(sc.Text(), "ready to accept connections") {
			told = true
			close(ready)
		}
	}
}

// Down stops the server: cleanly, or as a crash does.
func (s *Server) Down(crash bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	sig := syscall.SIGINT // fast: connections are cut, then a checkpoint
	if crash {
		sig = syscall.SIGQUIT // immediate: recovery at the next start
	}
	if err := s.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.exited:
	case <-time.After(30 * time.Second):
		_ = s.proc.Signal(syscall.SIGQUIT)
		<-s.exited
	}
	s.proc = nil
	return nil
}

// Close stops the server and deletes everything.
func (s *Server) Close() error {
	err := s.Down(true)
	return errors.Join(err, os.RemoveAll(s.dir))
}

// Database makes an empty database and returns its address.
func (s *Server) Database(ctx context.Context) (string, error) {
	c, err := pgx.Connect(ctx, s.address("postgres"))
	if err != nil {
		return "", err
	}
	defer c.Close(ctx)
	name := fmt.Sprintf("nacre%d", s.next.Add(1))
	if _, err := c.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return "", err
	}
	return s.address(name), nil
}

func (s *Server) address(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User("nacre"), Path: "/" + database, RawQuery: url.Values{"host": {s.dir}}.Encode()}
	return u.String()
}
