package client

import (
	"context"
	"errors"
	"iter"

	"github.com/nacrehq/nacre"
)

// FileEvent is a change in a watched directory. Its Name is relative to that.
type FileEvent = nacre.FileEvent

// What a FileEvent's Op can be.
const (
	FileCreate = nacre.FileCreate
	FileWrite  = nacre.FileWrite
	FileRemove = nacre.FileRemove
	FileRename = nacre.FileRename
	FileChmod  = nacre.FileChmod
)

// Watcher sees the changes in a directory. Close ends it.
type Watcher struct {
	cancel context.CancelCauseFunc
	events chan FileEvent
	done   chan struct{}
	err    error // after done
}

// Watch returns when every change from then on will be seen: those of the
// directory's own entries, and with recursive those of all that is below it. The
// end of ctx ends the Watcher.
func (f *Files) Watch(ctx context.Context, dir string, recursive bool) (*Watcher, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &Watcher{cancel: cancel, events: make(chan FileEvent), done: make(chan struct{})}
	ready := make(chan struct{})
	go func() {
		defer close(w.done)
		defer cancel(nil)
		err := f.sb.guest.files.Watch(ctx, f.user, dir, recursive, func() { close(ready) }, func(e nacre.FileEvent) error {
			select {
			case w.events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err == nil {
			err = nacre.Errorf(nacre.CodeUnavailable, "the stream ended")
		}
		w.err = f.sb.guest.streamError(ctx, fileError(ctx, err))
	}()
	select {
	case <-ready:
		return w, nil
	case <-w.done:
		return nil, w.err
	}
}

// Events goes through the changes as they come. It ends after Close, and with an
// error when the watching failed or its context ended. A change is given to one
// of several readers.
func (w *Watcher) Events() iter.Seq2[FileEvent, error] {
	return func(yield func(FileEvent, error) bool) {
		for {
			select {
			case e := <-w.events:
				if !yield(e, nil) {
					return
				}
			case <-w.done:
				if !errors.Is(w.err, errClosed) {
					yield(FileEvent{}, w.err)
				}
				return
			}
		}
	}
}

// Close ends the watching.
func (w *Watcher) Close() error {
	w.cancel(errClosed)
	<-w.done
	return nil
}
