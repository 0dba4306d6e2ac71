// Package machines is what runtime drivers share whose machine is a process that
// outlives the daemon: the set of those that this process watches, the life of each
// until the reason of its end is known, and the mark on a guest that stands still.
package machines

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// BootID names the host's current boot: process ids mean nothing in another one.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// Member is a driver's machine; a Life has these methods.
type Member interface {
	nacre.Machine
	// Watch returns when the machine has ended or was released.
	Watch()
	// Release ends the watching and not the machine.
	Release()
	// Gone is nil while the machine runs and is watched.
	Gone() error
}

// Set is the machines that this process started or took back. The zero value is
// empty. All methods may run at once.
type Set[M Member] struct {
	recovering sync.Mutex

	mu      sync.Mutex
	members map[nacre.MachineID]*M // nil: being started
	closed  bool
	work    sync.WaitGroup // claims, and watchers
}

// Start makes a machine with boot, which leaves nothing when it fails, and watches
// it. The start is called off after patience.
func (s *Set[M]) Start(ctx context.Context, id nacre.MachineID, patience time.Duration, boot func(context.Context) (M, error)) (m M, err error) {
	if err := s.claim(id); err != nil {
		return m, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err = boot(ctx)
	if err != nil {
		s.adopt(id, nil)
		switch cause := context.Cause(ctx); {
		case cause != nil:
			err = nacre.Wrap(nacre.CodeDeadline, errors.Join(cause, err), "the machine's start was called off")
		case errors.Is(err, unix.ENOSPC):
			err = nacre.Wrap(nacre.CodeNoSpace, err, "the node's disk is full")
		}
		return m, err
	}
	s.adopt(id, &m)
	return m, nil
}

// Recover returns the machine that is known already, or the one that find takes
// back: alive says whether it is to be watched.
func (s *Set[M]) Recover(id nacre.MachineID, find func() (m M, alive bool, err error)) (m M, err error) {
	s.recovering.Lock() // so that a second one finds what the first one took back
	defer s.recovering.Unlock()
	s.mu.Lock()
	known := s.members[id]
	s.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	if err := s.claim(id); err != nil {
		return m, err
	}
	m, alive, err := find()
	if err != nil || !alive {
		s.adopt(id, nil)
		return m, err
	}
	s.adopt(id, &m)
	return m, nil
}

// claim reserves the id for a machine that is about to be there; adopt follows.
func (s *Set[M]) claim(id nacre.MachineID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nacre.Errorf(nacre.CodeUnavailable, "the node is shutting down; try again")
	}
	if m, ok := s.members[id]; ok && !ended(m) {
		return nacre.Errorf(nacre.CodeConflict, "machine %s exists already", id)
	}
	if s.members == nil {
		s.members = map[nacre.MachineID]*M{}
	}
	s.members[id] = nil
	s.work.Add(1)
	return nil
}

// adopt registers the machine and watches it until it ends; nil gives the id
// back.
func (s *Set[M]) adopt(id nacre.MachineID, m *M) {
	defer s.work.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	if m == nil {
		delete(s.members, id)
		return
	}
	s.members[id] = m
	if s.closed {
		(*m).Release()
	}
	s.work.Go(func() {
		(*m).Watch()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.members[id] == m { // else another one has its name since
			delete(s.members, id)
		}
	})
}

// ended tells whether the machine is only not forgotten yet: whoever was told of its
// end need not wait for that.
func ended[M Member](m *M) bool { return m != nil && (*m).Gone() != nil }

// Known tells whether the machine is this process's business, or about to be.
func (s *Set[M]) Known(id nacre.MachineID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.members[id]
	return ok && !ended(m)
}

// All returns the machines that run and are watched, in no order.
func (s *Set[M]) All() (all []M) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.members {
		if m != nil && !ended(m) {
			all = append(all, *m)
		}
	}
	return all
}

// Close refuses new machines and releases those that are there, which run on; first
// is false for a repeat. Wait follows.
func (s *Set[M]) Close() (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = !s.closed
	s.closed = true
	for _, m := range s.members {
		if m != nil {
			(*m).Release()
		}
	}
	return first
}

// Wait returns when no start is under way and nothing is watched any more.
func (s *Set[M]) Wait() { s.work.Wait() }
