package miosa

import (
	"context"
	"path"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// watchEvent is one change; "type" and "event" say the same to different clients.
type watchEvent struct {
	Type    string  `json:"type"`
	Event   string  `json:"event"`
	Path    string  `json:"path"`
	IsDir   bool    `json:"is_dir"`
	OldPath *string `json:"old_path"`
}

// renameTime is how long after a file left its name its new one turns up, if it is
// below the watched directory at all.
const renameTime = 50 * time.Millisecond

// watch sends the changes below a directory until the client goes away.
func (a *API) watch(c *api.Call) error {
	p, err := queryPath(c)
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	if _, err := g.stat(c, p); err != nil {
		return err
	}
	s, err := startSSE(c)
	if err != nil {
		return nil
	}
	w := &watching{guest: g, root: p}
	send := func(e watchEvent) error {
		if e.Event == "ready" {
			return s.beat() // the first bytes say that changes are seen from now on
		}
		return s.send(e.Event, 0, e)
	}
	return quiet(c, follow(c.R.Context(), s, w.run, send))
}

type watching struct {
	guest *guest
	root  string
}

// run turns the guest's events into the client's: the two halves of a rename are
// one event here.
func (w *watching) run(ctx context.Context, give func(watchEvent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan nacre.FileEvent)
	ended := make(chan error, 1)
	go func() {
		defer close(events)
		ready := func() { _ = give(watchEvent{Event: "ready"}) }
		ended <- asUser(func(user string) error {
			return w.guest.agent.Files().Watch(ctx, user, w.root, true, ready, func(e nacre.FileEvent) error {
				select {
				case events <- e:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}()
	err := w.pass(ctx, events, give)
	cancel()
	for range events { // until the watch has returned
	}
	if err != nil {
		return err
	}
	return <-ended
}

func (w *watching) pass(ctx context.Context, events <-chan nacre.FileEvent, give func(watchEvent) error) error {
	left := "" // the old name of a rename whose new one has not come
	timer := time.NewTimer(renameTime)
	defer timer.Stop()
	gone := func() error {
		if left == "" {
			return nil
		}
		e := watchEvent{Type: "deleted", Event: "deleted", Path: left}
		left = ""
		return give(e)
	}
	for {
		select {
		case <-timer.C:
			if err := gone(); err != nil {
				return err
			}
		case e, ok := <-events:
			if !ok {
				return gone()
			}
			p := path.Join(w.root, e.Name)
			switch {
			case e.Op == nacre.FileRename:
				if err := gone(); err != nil {
					return err
				}
				left = p
				timer.Reset(renameTime)
				continue
			case e.Op == nacre.FileCreate && left != "":
				old := left
				left = ""
				if err := give(w.event(ctx, "renamed", p, &old)); err != nil {
					return err
				}
				continue
			}
			if err := gone(); err != nil {
				return err
			}
			if err := give(w.event(ctx, changes[e.Op], p, nil)); err != nil {
				return err
			}
		}
	}
}

var changes = map[nacre.FileOp]string{
	nacre.FileCreate: "created", nacre.FileWrite: "modified", nacre.FileChmod: "modified", nacre.FileRemove: "deleted",
}

func (w *watching) event(ctx context.Context, word, p string, old *string) watchEvent {
	out := watchEvent{Type: word, Event: word, Path: p, OldPath: old}
	if word != "deleted" {
		_ = asUser(func(user string) error {
			f, err := w.guest.agent.Files().Stat(ctx, user, p) // it may be gone again
			out.IsDir = f.Dir
			return err
		})
	}
	return out
}
