package undo_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/nacrehq/nacre/internal/undo"
)

func TestRunsBackwardsAndOnce(t *testing.T) {
	var s undo.Stack
	var ran []string
	for _, name := range []string{"a", "b", "c"} {
		s.Push(name, func(context.Context) error { ran = append(ran, name); return nil })
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"c", "b", "a"}; !slices.Equal(ran, want) {
		t.Fatalf("ran %v, want %v", ran, want)
	}
}

func TestAFailedStepIsTriedAgainAndHoldsUpNoOther(t *testing.T) {
	var s undo.Stack
	boom := errors.New("boom")
	fails, first := 1, 0
	s.Push("first", func(context.Context) error { first++; return nil })
	s.Push("flaky", func(context.Context) error {
		if fails--; fails >= 0 {
			return boom
		}
		return nil
	})
	if err := s.Run(t.Context()); !errors.Is(err, boom) {
		t.Fatalf("got %v, want boom", err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatalf("second run: %v", err)
	}
	if first != 1 {
		t.Fatalf("the good step ran %d times, want 1", first)
	}
}

func TestKeepForgets(t *testing.T) {
	var s undo.Stack
	s.Push("x", func(context.Context) error { t.Error("ran"); return nil })
	s.Keep()
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRunsAfterTheContextEnded(t *testing.T) {
	var s undo.Stack
	s.Push("x", func(ctx context.Context) error { return ctx.Err() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatalf("the step saw an ended context: %v", err)
	}
}
