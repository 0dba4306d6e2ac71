package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/machines"
	"github.com/nacrehq/nacre/internal/pidfd"
	"github.com/nacrehq/nacre/internal/uffd"
)

// state is a handle's content.
type state struct {
	machines.Trace
	Upper   string // the directory of its disk
	Program string // Firecracker's base name, a part of the jail's path
	Slot    slotName
	// HugePages is how many of the host's pages of 2 MiB the guest was promised.
	HugePages int         `json:",omitempty"`
	Pager     *pagerTrace `json:",omitempty"` // of a guest that goes on in such pages
}

type slotName struct{ Name, Path string }

// machine implements nacre.Machine.
type machine struct {
	*machines.Life
	r    *Runtime
	st   state
	jail jail
	api  *api
	base base

	pages *promise // nil for a guest with ordinary pages
	pager *pager   // nil for a guest that has none, or had none from its beginning
}

func newMachine(r *Runtime, id nacre.MachineID, p *pidfd.Process, st state) *machine {
	b, err := json.Marshal(st)
	if err != nil {
		panic(err) // plain data
	}
	j := jail{base: filepath.Join(st.Dir, "jail"), uid: machineUser(id)}
	j.root = filepath.Join(j.base, st.Program, string(id), "root")
	m := &machine{r: r, st: st, jail: j, api: newAPI(j.root, apiName)}
	m.Life = machines.New(machines.Birth{
		Handle: nacre.Handle{Machine: id, Runtime: r.Name(), State: b},
		Dir:    st.Dir, Proc: p, Group: r.cgroup.Group(string(id)), Kind: m, Log: r.cfg.Log, Clock: r.cfg.Clock,
	})
	return m
}

// Recover implements nacre.Runtime.
func (r *Runtime) Recover(ctx context.Context, h nacre.Handle) (nacre.Machine, error) {
	var st state
	if err := json.Unmarshal(h.State, &st); err != nil || h.Runtime != r.Name() || !h.Machine.Valid() || !st.Valid() ||
		st.Program == "" || filepath.Base(st.Program) != st.Program {
		return nil, nacre.Wrap(nacre.CodeInvalid, err, "the handle of machine "+strconv.Quote(string(h.Machine))+" is not one of this runtime's")
	}
	m, err := r.machines.Recover(h.Machine, func() (*machine, bool, error) {
		p, err := st.Find(r.bootID)
		if err != nil {
			return nil, false, err
		}
		m := newMachine(r, h.Machine, p, st)
		if p == nil {
			return m, false, m.End(ctx)
		}
		if m.pager, err = st.findPager(); err != nil {
			p.Close()
			return nil, false, err
		}
		if st.HugePages > 0 {
			m.pages = r.pool.adopt(st.HugePages, st.PID)
		}
		return m, true, nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Watch implements machines.Member.
func (m *machine) Watch() {
	alive, over := context.WithCancel(context.Background())
	var guards sync.WaitGroup
	guards.Go(func() { m.guardState(alive) })
	guards.Go(func() { m.guardAnswers(alive) })
	guards.Go(func() { m.guardPager(alive) })
	m.Life.Watch()
	over()
	if nacre.IsCode(m.Gone(), nacre.CodeNotFound) {
		m.pager.kill() // it is gone by now, and has to be reaped
	} else {
		m.pager.close() // the driver was closed, the machine goes on
	}
	guards.Wait()
	m.pager.close()
}

// Clear implements machines.Kind.
func (m *machine) Clear() error {
	m.base.forget()
	m.r.pool.release(m.pages)
	return errors.Join(disconnectTap(nacre.Slot{Name: m.st.Slot.Name, Path: m.st.Slot.Path}), m.jail.remove())
}

// Evidence implements machines.Kind: the end of the guest's console, where it is kept.
func (m *machine) Evidence() string {
	if !m.r.cfg.Debug {
		return ""
	}
	b, _ := os.ReadFile(filepath.Join(m.st.Dir, consoleFile))
	return string(b[max(0, len(b)-4000):])
}

// Reason implements machines.Kind.
func (m *machine) Reason(status unix.WaitStatus, known bool) (nacre.EndReason, string) {
	_, err := os.Stat(filepath.Join(m.st.Dir, hungFile))
	hung := err == nil
	_, err = os.Stat(filepath.Join(m.st.Dir, lostFile))
	lost := err == nil
	last, said := readLastWord(m.st.Upper)
	switch {
	case hung:
		return nacre.EndCrash, "The machine's VMM did not answer and was killed."
	case m.Group.OOMKilled():
		return nacre.EndOOM, "The machine used more memory than its limit."
	case lost:
		return nacre.EndCrash, "The process that brought the machine's memory back from its snapshot ended too early, and the machine was killed."
	case said && last.OOM:
		return nacre.EndOOM, "The sandbox used more memory than it has."
	case said && last.Exited:
		return nacre.EndCrash, fmt.Sprintf("The machine's first process exited with status %d.", last.Status)
	case said && last.Failed != "":
		return nacre.EndCrash, "The machine's guest could not be set up; the node's log has the cause."
	case said:
		return nacre.EndCrash, fmt.Sprintf("The machine's first process was killed by signal %d.", last.Signal)
	case m.st.BootID != m.r.bootID:
		return nacre.EndCrash, "The host was restarted."
	case known && status.Signaled():
		return nacre.EndCrash, fmt.Sprintf("The machine was killed from outside by signal %d (%s).", status.Signal(), status.Signal())
	default:
		return nacre.EndCrash, "The machine's kernel or its VMM ended by itself."
	}
}

// Dial implements nacre.Machine.
func (m *machine) Dial(ctx context.Context, port int) (net.Conn, error) {
	return m.Connect(ctx, port, func(ctx context.Context) (*net.TCPConn, error) { return dialPort(ctx, m.st.Slot.Path, port) })
}

// Usage implements nacre.Machine. Pages of 2 MiB are in no account of the cgroup's.
func (m *machine) Usage(ctx context.Context) (nacre.Usage, error) {
	u, err := m.Life.Usage(ctx)
	if err == nil && m.pages != nil {
		if n, err := hugePagesOf(m.Proc.PID); err == nil {
			u.MemoryBytes += int64(n) * uffd.PageSize
		}
	}
	return u, err
}
