package machines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/pidfd"
)

// member is a machine whose process is a shell's; its reason counts how often it is
// asked.
type member struct {
	nacre.Machine
	*Life
	asked, cleared int
	uncleared      error
}

func (m *member) ID() nacre.MachineID          { return m.Life.ID() }
func (m *member) Handle() nacre.Handle         { return m.Life.Handle() }
func (m *member) Kill(c context.Context) error { return m.Life.Kill(c) }
func (m *member) Stop(c context.Context) error { return m.Life.Stop(c) }
func (m *member) Wait(c context.Context) (nacre.Exit, error) {
	return m.Life.Wait(c)
}
func (m *member) Usage(c context.Context) (nacre.Usage, error) { return m.Life.Usage(c) }
func (m *member) Evidence() string                             { return "" }
func (m *member) Clear() error                                 { m.cleared++; return m.uncleared }
func (m *member) Reason(unix.WaitStatus, bool) (nacre.EndReason, string) {
	m.asked++
	return nacre.EndCrash, "asked"
}

func newMember(t *testing.T, id nacre.MachineID, p *pidfd.Process, dir string) *member {
	t.Helper()
	h, err := cgroup.Find("/proc/self/mountinfo", "nacre-machines-test")
	if err != nil {
		t.Skip("needs cgroups: ", err)
	}
	m := &member{}
	m.Life = New(Birth{Handle: nacre.Handle{Machine: id}, Dir: dir, Proc: p, Group: h.Group(string(id)), Kind: m, Log: slog.New(slog.DiscardHandler), Clock: time.Now})
	return m
}

// sleeper starts a process that ends with the test.
func sleeper(t *testing.T) *pidfd.Process {
	t.Helper()
	c := exec.Command("sleep", "1000")
	fd := -1
	c.SysProcAttr = &unix.SysProcAttr{PidFD: &fd}
	check(t, c.Start())
	p, err := pidfd.New(c.Process.Pid, fd, true)
	check(t, err)
	_ = c.Process.Release()
	t.Cleanup(p.Kill)
	return p
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestTornExit: an exit file that a crash left half-written is decided again, and a
// whole one never.
func TestTornExit(t *testing.T) {
	for _, content := range []string{"", "{", `{"Machine":"mother"}`} {
		dir, id := t.TempDir(), nacre.NewMachineID()
		check(t, os.WriteFile(filepath.Join(dir, ExitFile), []byte(content), 0o600))
		m := newMember(t, id, nil, dir)
		check(t, m.End(t.Context()))
		if e, err := m.Wait(t.Context()); err != nil || e.Machine != id || e.Reason != nacre.EndCrash || m.asked != 1 {
			t.Errorf("%q: %+v, %v, asked %d times", content, e, err, m.asked)
		}
		again := newMember(t, id, nil, dir)
		check(t, again.End(t.Context()))
		if e, _ := again.Wait(t.Context()); e.Detail != "asked" || again.asked != 0 {
			t.Errorf("%q: the answer was decided a second time: %+v", content, e)
		}
	}
}

// TestLife: a machine that is stopped says so, its methods that it is gone, and what
// could not be cleared is tried again.
func TestLife(t *testing.T) {
	var s Set[*member]
	dir, id := t.TempDir(), nacre.NewMachineID()
	m, err := s.Start(t.Context(), id, time.Minute, func(context.Context) (*member, error) { return newMember(t, id, sleeper(t), dir), nil })
	check(t, err)
	m.uncleared = errors.New("busy")
	if _, err := s.Start(t.Context(), id, time.Minute, nil); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("a second start: %v", err)
	}
	if same, err := s.Recover(id, nil); err != nil || same != m {
		t.Errorf("recovered %v, %v; want the one that is known", same, err)
	}
	if err := m.Stop(t.Context()); err == nil {
		t.Error("what was left is not told")
	}
	m.uncleared = nil
	check(t, m.Stop(t.Context()))
	if e, err := m.Wait(t.Context()); err != nil || e.Reason != nacre.EndKilled || m.asked != 0 {
		t.Errorf("%+v, %v, asked %d times", e, err, m.asked)
	}
	if _, err := m.Usage(t.Context()); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Errorf("usage: %v", err)
	}
	if s.Known(id) || len(s.All()) > 0 {
		t.Error("the machine is known still")
	}
	again, err := s.Start(t.Context(), id, time.Minute, func(context.Context) (*member, error) { return newMember(t, id, sleeper(t), t.TempDir()), nil })
	check(t, err)
	if all := s.All(); len(all) != 1 || all[0] != again {
		t.Errorf("the set holds %v", all)
	}
	check(t, again.Stop(t.Context()))
	s.Wait()
}

// TestGoneOr: a connection that breaks off is the end of the process, which is seen
// only later; what a machine that lives answers is told at once.
func TestGoneOr(t *testing.T) {
	var s Set[*member]
	id := nacre.NewMachineID()
	m, err := s.Start(t.Context(), id, time.Minute, func(context.Context) (*member, error) { return newMember(t, id, sleeper(t), t.TempDir()), nil })
	check(t, err)
	refused := errors.New("refused")
	if err := m.GoneOr(refused); err != refused {
		t.Errorf("of one that lives: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, m.Proc.Kill)
	if err := m.GoneOr(fmt.Errorf("call: %w", io.EOF)); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Errorf("of one that ends: %v", err)
	}
	s.Wait()
}

// TestStartFails: the id is free again, and what ended the start is told.
func TestStartFails(t *testing.T) {
	var s Set[*member]
	id := nacre.NewMachineID()
	for _, c := range []struct {
		boot func(context.Context) (*member, error)
		want nacre.Code
	}{
		{func(ctx context.Context) (*member, error) { <-ctx.Done(); return nil, ctx.Err() }, nacre.CodeDeadline},
		{func(context.Context) (*member, error) { return nil, &os.PathError{Op: "write", Err: unix.ENOSPC} }, nacre.CodeNoSpace},
	} {
		if _, err := s.Start(t.Context(), id, 10*time.Millisecond, c.boot); !nacre.IsCode(err, c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
		if s.Known(id) {
			t.Error("the id is taken still")
		}
	}
}

// TestClose: the machine runs on, and whoever waits for it is told that nobody watches.
func TestClose(t *testing.T) {
	var s Set[*member]
	id, p := nacre.NewMachineID(), sleeper(t)
	m, err := s.Start(t.Context(), id, time.Minute, func(context.Context) (*member, error) { return newMember(t, id, p, t.TempDir()), nil })
	check(t, err)
	if !s.Close() || s.Close() {
		t.Error("Close does not tell the first from a repeat")
	}
	s.Wait()
	if _, err := m.Wait(t.Context()); !nacre.IsCode(err, nacre.CodeUnavailable) || !errors.Is(err, pidfd.ErrClosed) {
		t.Errorf("%v", err)
	}
	if _, err := s.Start(t.Context(), nacre.NewMachineID(), time.Minute, nil); !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Errorf("a start after Close: %v", err)
	}
	found, err := pidfd.Find(p.PID, p.Start)
	if err != nil || found == nil || !found.Alive() {
		t.Fatalf("the process is gone: %v", err)
	}
	found.Kill()
	_, _, _ = found.Wait()
	found.Close()
	_, _ = unix.Wait4(p.PID, nil, 0, nil)
}

// TestHold: one at a time, and a later process knows from the mark.
func TestHold(t *testing.T) {
	dir := t.TempDir()
	m := newMember(t, nacre.NewMachineID(), nil, dir)
	done, err := m.Hold.ForSnapshot()
	check(t, err)
	if _, err := m.Hold.ForSnapshot(); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("two at once: %v", err)
	}
	if _, _, err := m.Hold.ForResume(); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("a resume of a snapshot under way: %v", err)
	}
	check(t, m.Hold.Begin())
	m.Hold.Stopped()
	done()
	later := newMember(t, m.ID(), nil, dir)
	if _, err := later.Hold.ForSnapshot(); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("a snapshot of a guest that stands still: %v", err)
	}
	done, still, err := later.Hold.ForResume()
	if err != nil || !still || later.Hold.Held() {
		t.Fatalf("still %t, held %t, %v", still, later.Hold.Held(), err)
	}
	check(t, later.Hold.Ended())
	done()
	if _, still, err := later.Hold.ForResume(); still || err != nil {
		t.Errorf("a guest that runs: still %t, %v", still, err)
	}
}
