package nacretest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nacrehq/nacre"
)

// FakeHost pretends to be a host: machines, network slots and root file systems
// in memory, good enough to run the whole product without root. As on a real host
// they outlive the daemon: make a second Daemon on the same host to restart.
type FakeHost struct {
	// BootTime is how long a machine takes to start. Set it before use.
	BootTime time.Duration

	hook atomic.Pointer[Hook]

	mu       sync.Mutex
	builds   map[nacre.BuildID]bool
	machines map[nacre.MachineID]*FakeMachine
	slots    map[nacre.MachineID]nacre.RecoveredSlot
	roots    map[nacre.MachineID]nacre.BuildID
	slotNo   int
}

// Hook is called at the beginning of every operation of a FakeHost
// ("runtime.start", "network.acquire", "agent.init", ...); an error fails it.
type Hook func(op string, id nacre.MachineID) error

// SetHook sets the hook, or takes it away with nil.
func (h *FakeHost) SetHook(hook Hook) { h.hook.Store(&hook) }

func (h *FakeHost) call(op string, id nacre.MachineID) error {
	if hook := h.hook.Load(); hook != nil && *hook != nil {
		return (*hook)(op, id)
	}
	return nil
}

// NewFakeHost makes a host that has the root file systems of the builds.
func NewFakeHost(builds ...nacre.BuildID) *FakeHost {
	h := &FakeHost{
		builds:   map[nacre.BuildID]bool{},
		machines: map[nacre.MachineID]*FakeMachine{},
		slots:    map[nacre.MachineID]nacre.RecoveredSlot{},
		roots:    map[nacre.MachineID]nacre.BuildID{},
	}
	for _, b := range builds {
		h.builds[b] = true
	}
	return h
}

// Machines returns the machines that run.
func (h *FakeHost) Machines() []*FakeMachine {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*FakeMachine
	for _, m := range h.machines {
		if !m.hasEnded() {
			out = append(out, m)
		}
	}
	return out
}

// Machine returns one machine, nil when there is none of that id.
func (h *FakeHost) Machine(id nacre.MachineID) *FakeMachine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machines[id]
}

// Vanish takes every machine away without a trace of why.
func (h *FakeHost) Vanish() {
	h.mu.Lock()
	gone := h.machines
	h.machines = map[nacre.MachineID]*FakeMachine{}
	h.mu.Unlock()
	for _, m := range gone {
		m.end(nacre.EndCrash, "")
	}
}

// Policy returns the egress policy in force for a machine.
func (h *FakeHost) Policy(id nacre.MachineID) (nacre.EgressPolicy, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.slots[id]
	return s.Policy, ok
}

// Leaks describes everything on the host that does not belong to a running
// machine of keep; it is empty when nothing was left behind.
func (h *FakeHost) Leaks(keep ...nacre.MachineID) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := map[nacre.MachineID]bool{}
	for _, id := range keep {
		known[id] = true
	}
	var out []string
	for id := range h.machines {
		if !known[id] {
			out = append(out, fmt.Sprintf("machine %s", id))
		}
	}
	for id := range h.slots {
		if !known[id] {
			out = append(out, fmt.Sprintf("slot of %s", id))
		}
	}
	for id := range h.roots {
		if !known[id] {
			out = append(out, fmt.Sprintf("root of %s", id))
		}
	}
	return out
}

// Daemon is one process's access to the host.
func (h *FakeHost) Daemon() *FakeDaemon { return &FakeDaemon{host: h} }

// FakeDaemon is what one run of the daemon sees of a FakeHost. After Kill nothing
// that the run still does has an effect, as after a kill -9.
type FakeDaemon struct {
	host *FakeHost

	mu     sync.Mutex
	dead   bool
	fuse   int // operations until the kill; 0 = never
	onKill func()
}

var errKilled = errors.New("the daemon was killed")

// KillAt arranges a kill before the n-th operation from now (1 = the next). Each
// operation counts twice: before it does anything, and after it is done. then is
// called once, at that moment.
func (d *FakeDaemon) KillAt(n int, then func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fuse, d.onKill = n, then
}

// Kill ends the run.
func (d *FakeDaemon) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blow()
}

func (d *FakeDaemon) blow() {
	if d.dead {
		return
	}
	d.dead = true
	if d.onKill != nil {
		d.onKill()
	}
}

// Killed tells whether the run has ended.
func (d *FakeDaemon) Killed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

// Step is one boundary between operations: an error means that the daemon is dead.
func (d *FakeDaemon) Step() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fuse > 0 {
		if d.fuse--; d.fuse == 0 {
			d.blow()
		}
	}
	if d.dead {
		return errKilled
	}
	return nil
}

// op begins an operation; Step ends it.
func (d *FakeDaemon) op(name string, id nacre.MachineID) error {
	if err := d.Step(); err != nil {
		return err
	}
	return d.host.call(name, id)
}

// Runtime returns the host's driver, "fake".
func (d *FakeDaemon) Runtime() nacre.Runtime {
	return d.Driver(nacre.Capabilities{Runtime: "fake", Isolation: "none (fake)", Snapshots: true, RestoreKey: fakeRestoreKey})
}

// Driver returns a driver that is what can says. The machines of drivers of other
// names are none of its own.
func (d *FakeDaemon) Driver(can nacre.Capabilities) nacre.Runtime { return fakeRuntime{d, can} }

// Network returns the host's slots.
func (d *FakeDaemon) Network() nacre.Network { return fakeNetwork{d} }

// Images returns the host's root file systems.
func (d *FakeDaemon) Images() nacre.ImageStore { return fakeImages{d} }

type fakeRuntime struct {
	d   *FakeDaemon
	can nacre.Capabilities
}

func (r fakeRuntime) Name() nacre.RuntimeName          { return r.can.Runtime }
func (r fakeRuntime) Capabilities() nacre.Capabilities { return r.can }

func (r fakeRuntime) Start(ctx context.Context, spec nacre.MachineSpec) (nacre.Machine, error) {
	if err := r.d.op("runtime.start", spec.ID); err != nil {
		return nil, err
	}
	return r.boot(ctx, spec, func(*FakeGuest) {})
}

// boot makes a machine whose guest load fills.
func (r fakeRuntime) boot(ctx context.Context, spec nacre.MachineSpec, load func(*FakeGuest)) (nacre.Machine, error) {
	if spec.Runtime != "" && spec.Runtime != r.Name() {
		return nil, nacre.Errorf(nacre.CodeUnsupported, "the runtime %q is not %s", spec.Runtime, r.Name())
	}
	h := r.d.host
	if h.BootTime > 0 {
		select {
		case <-time.After(h.BootTime):
		case <-ctx.Done():
			return nil, nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the start was called off")
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, nacre.Wrap(nacre.CodeDeadline, err, "the start was called off")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[spec.ID] != nil {
		return nil, nacre.Errorf(nacre.CodeConflict, "machine %s exists", spec.ID)
	}
	m := &FakeMachine{Spec: spec, Runtime: r.Name(), ended: make(chan struct{}), born: time.Now()}
	m.Guest = newFakeGuest(m)
	load(m.Guest)
	h.machines[spec.ID] = m
	if err := r.d.Step(); err != nil {
		return nil, err
	}
	return fakeMachine{r.d, m, r.can}, nil
}

func (r fakeRuntime) Recover(_ context.Context, handle nacre.Handle) (nacre.Machine, error) {
	if handle.Runtime != r.Name() {
		return nil, nacre.Errorf(nacre.CodeInvalid, "the handle of machine %s is not one of this runtime's", handle.Machine)
	}
	if err := r.d.op("runtime.recover", handle.Machine); err != nil {
		return nil, err
	}
	h := r.d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[handle.Machine]
	if m == nil {
		return nil, nacre.Errorf(nacre.CodeNotFound, "machine %s is gone", handle.Machine)
	}
	return fakeMachine{r.d, m, r.can}, nil
}

func (r fakeRuntime) Sweep(_ context.Context, keep func(nacre.MachineID) bool) error {
	if err := r.d.op("runtime.sweep", ""); err != nil {
		return err
	}
	for _, id := range r.d.host.ids(func(h *FakeHost) []nacre.MachineID { return keys(h.machines) }) {
		if keep(id) {
			continue
		}
		if m := r.d.host.Machine(id); m != nil && m.Runtime == r.Name() {
			m.end(nacre.EndKilled, "swept")
			r.d.host.forget(id)
		}
	}
	return nil
}

func (h *FakeHost) ids(fn func(*FakeHost) []nacre.MachineID) []nacre.MachineID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fn(h)
}

func (h *FakeHost) forget(id nacre.MachineID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.machines, id)
}

func keys[V any](m map[nacre.MachineID]V) []nacre.MachineID {
	out := make([]nacre.MachineID, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

// FakeMachine is one machine of a FakeHost.
type FakeMachine struct {
	Spec    nacre.MachineSpec
	Runtime nacre.RuntimeName // of the driver that made it
	Guest   *FakeGuest

	born  time.Time
	ended chan struct{}
	once  sync.Once
	exit  nacre.Exit

	mu   sync.Mutex
	held chan struct{} // the guest stands still until it is closed; nil when it does not
}

// Crash ends the machine as if by itself.
func (m *FakeMachine) Crash(reason nacre.EndReason, detail string) { m.end(reason, detail) }

func (m *FakeMachine) end(reason nacre.EndReason, detail string) {
	m.once.Do(func() {
		m.exit = nacre.Exit{Machine: m.Spec.ID, Reason: reason, Detail: detail, At: time.Now()}
		close(m.ended)
		m.Guest.close()
	})
}

func (m *FakeMachine) hasEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// fakeMachine is a daemon's view of a machine.
type fakeMachine struct {
	d   *FakeDaemon
	m   *FakeMachine
	can nacre.Capabilities
}

func (v fakeMachine) ID() nacre.MachineID { return v.m.Spec.ID }

func (v fakeMachine) Handle() nacre.Handle {
	state, _ := json.Marshal(map[string]any{"born": v.m.born})
	return nacre.Handle{Machine: v.m.Spec.ID, Runtime: v.m.Runtime, State: state}
}

func (v fakeMachine) Dial(_ context.Context, port int) (net.Conn, error) {
	if v.d.Killed() {
		return nil, errKilled
	}
	if v.m.hasEnded() {
		return nil, nacre.Errorf(nacre.CodeNotFound, "machine %s has ended", v.m.Spec.ID)
	}
	return v.m.Guest.connect(port)
}

func (v fakeMachine) Kill(context.Context) error {
	if err := v.d.op("machine.kill", v.m.Spec.ID); err != nil {
		return err
	}
	v.m.end(nacre.EndKilled, "stopped")
	return v.d.Step()
}

func (v fakeMachine) Stop(context.Context) error {
	if err := v.d.op("machine.stop", v.m.Spec.ID); err != nil {
		return err
	}
	v.m.end(nacre.EndKilled, "stopped")
	v.d.host.forget(v.m.Spec.ID)
	return v.d.Step()
}

func (v fakeMachine) Wait(ctx context.Context) (nacre.Exit, error) {
	select {
	case <-v.m.ended:
		return v.m.exit, nil
	case <-ctx.Done():
		return nacre.Exit{}, ctx.Err()
	}
}

func (v fakeMachine) Usage(context.Context) (nacre.Usage, error) {
	if v.m.hasEnded() {
		return nacre.Usage{}, nacre.Errorf(nacre.CodeNotFound, "machine %s has ended", v.m.Spec.ID)
	}
	return nacre.Usage{CPUTime: time.Since(v.m.born) / 10, MemoryBytes: 20 << 20, PIDs: 3}, nil
}
