package gvisor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/machines"
	"github.com/nacrehq/nacre/internal/pidfd"
)

// state is a handle's content.
type state struct {
	machines.Trace
	Guest netip.Addr
	Group string // the cgroup's name; "" in a handle of an older server: the machine's id
}

func (s state) group(id nacre.MachineID) string { return cmp.Or(s.Group, string(id)) }

// machine implements nacre.Machine.
type machine struct {
	*machines.Life
	r  *Runtime
	st state
}

func newMachine(r *Runtime, id nacre.MachineID, p *pidfd.Process, st state) *machine {
	b, err := json.Marshal(st)
	if err != nil {
		panic(err) // plain data
	}
	m := &machine{r: r, st: st}
	m.Life = machines.New(machines.Birth{
		Handle: nacre.Handle{Machine: id, Runtime: r.Name(), State: b},
		Dir:    st.Dir, Proc: p, Group: r.cgroup.Group(st.group(id)), Kind: m, Log: r.cfg.Log, Clock: r.cfg.Clock,
	})
	return m
}

// Recover implements nacre.Runtime.
func (r *Runtime) Recover(ctx context.Context, h nacre.Handle) (nacre.Machine, error) {
	var st state
	if err := json.Unmarshal(h.State, &st); err != nil || h.Runtime != r.Name() || !h.Machine.Valid() || !st.Valid() {
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
		return m, true, nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Clear implements machines.Kind.
func (m *machine) Clear() error {
	_ = os.Remove(filepath.Join(m.st.Dir, socketFile))
	return nil
}

// Evidence implements machines.Kind: what the sandbox said when it gave up.
func (m *machine) Evidence() string { return lastWords(m.st.Dir) }

func lastWords(dir string) string {
	b, _ := os.ReadFile(filepath.Join(dir, fatalFile))
	b = bytes.TrimSpace(b)
	return string(b[:min(len(b), 2000)])
}

// Reason implements machines.Kind.
func (m *machine) Reason(status unix.WaitStatus, known bool) (nacre.EndReason, string) {
	st, err := os.Stat(filepath.Join(m.st.Dir, fatalFile))
	failed := err == nil && st.Size() > 0
	switch {
	case known && status.Exited() && !failed:
		return nacre.EndCrash, fmt.Sprintf("The machine's first process exited with status %d.", status.ExitStatus())
	case m.Group.OOMKilled():
		return nacre.EndOOM, "The sandbox used more memory than its limit."
	case m.st.BootID != m.r.bootID:
		return nacre.EndCrash, "The host was restarted."
	case failed && m.Group.PIDsExceeded():
		return nacre.EndCrash, "The sandbox reached its limit of host tasks."
	case failed:
		return nacre.EndCrash, "The sandbox's kernel failed; the node's log has the cause."
	case known && status.Signaled():
		return nacre.EndCrash, fmt.Sprintf("The machine was killed from outside by signal %d (%s).", status.Signal(), status.Signal())
	default:
		return nacre.EndCrash, "The machine ended by itself while nobody watched."
	}
}

// Dial implements nacre.Machine.
func (m *machine) Dial(ctx context.Context, port int) (net.Conn, error) {
	return m.Connect(ctx, port, func(ctx context.Context) (*net.TCPConn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(m.st.Guest, uint16(port)).String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	})
}
