package image

import "context"

// Work does everything that there is to do in the background.
func (s *Artifacts) Work(ctx context.Context) error {
	s.relieve()
	for a := s.next(); a != nil; a = s.next() {
		s.chunk(ctx, a)
	}
	s.relieve()
	return s.collect(ctx)
}

// Settle waits for what is deleted in the background.
func (s *Artifacts) Settle() { s.running.Wait() }

// DropAll drops every plain copy that may go.
func (s *Artifacts) DropAll() error {
	for {
		if dropped, err := s.dropOldest(); !dropped || err != nil {
			return err
		}
	}
}
