// Package undo is a stack of the steps that take back what a longer action has
// done so far. Whoever does something in many steps pushes the opposite of each,
// and runs the stack when a later step fails.
package undo

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Stack holds the steps. The zero value is ready; all methods may run at once,
// so that steps which are done side by side can share one.
type Stack struct {
	mu    sync.Mutex
	steps []step
}

type step struct {
	name string
	fn   func(context.Context) error
}

// Push adds the opposite of a step. fn may be called more than once in the life
// of the thing that it undoes, so it has to bear that.
func (s *Stack) Push(name string, fn func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, fn})
}

// Keep forgets every step: the action worked.
func (s *Stack) Keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = nil
}

// Run runs the steps, the last pushed first, all of them even when some fail. The
// ones that failed stay on the stack, so that Run can be tried again; the others
// are gone. It runs on even when ctx has ended: half an undo is worse than a late one.
func (s *Stack) Run(ctx context.Context) error {
	s.mu.Lock()
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()

	ctx = context.WithoutCancel(ctx)
	var errs []error
	var failed []step
	for i := len(steps) - 1; i >= 0; i-- {
		if err := steps[i].fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", steps[i].name, err))
			failed = append([]step{steps[i]}, failed...)
		}
	}
	if failed != nil {
		s.mu.Lock()
		s.steps = append(failed, s.steps...)
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}
