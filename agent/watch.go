package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre"
	pb "github.com/nacrehq/nacre/agent/envd/filesystempb"
)

const (
	maxWatchers = 128
	// A polled watcher that nobody asked for so long makes room for a new one.
	watcherIdle = 10 * time.Minute
)

// watcherTable holds all watchers, streamed and polled.
type watcherTable struct {
	mu     sync.Mutex
	all    map[*watcher]struct{}
	polled map[string]*polledWatcher
	closed bool
}

type polledWatcher struct {
	w    *watcher
	used time.Time
}

func newWatcherTable() *watcherTable {
	return &watcherTable{all: map[*watcher]struct{}{}, polled: map[string]*polledWatcher{}}
}

// sync brings every watcher up to now: what happened before a request is seen,
// and a directory made before it is watched.
func (t *watcherTable) sync() {
	t.mu.Lock()
	if len(t.all) == 0 {
		t.mu.Unlock()
		return
	}
	ws := make([]*watcher, 0, len(t.all))
	for w := range t.all {
		ws = append(ws, w)
	}
	t.mu.Unlock()
	for _, w := range ws {
		w.drain()
	}
}

func (t *watcherTable) open(path string, recursive bool) (*watcher, error) {
	t.mu.Lock()
	full := len(t.all) >= maxWatchers && !t.evictLocked()
	t.mu.Unlock()
	if full {
		return nil, nacre.Errorf(nacre.CodeExhausted, "more than %d watchers: remove one first", maxWatchers)
	}
	w, err := newWatcher(path, recursive)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		w.close()
		return nil, nacre.Errorf(nacre.CodeUnavailable, "the agent is closing")
	}
	t.all[w] = struct{}{}
	return w, nil
}

// evictLocked forgets the polled watcher that was left alone the longest.
func (t *watcherTable) evictLocked() bool {
	oldest := ""
	for id, p := range t.polled {
		if time.Since(p.used) > watcherIdle && (oldest == "" || p.used.Before(t.polled[oldest].used)) {
			oldest = id
		}
	}
	if oldest == "" {
		return false
	}
	w := t.polled[oldest].w
	delete(t.polled, oldest)
	delete(t.all, w)
	w.close()
	return true
}

func (t *watcherTable) release(w *watcher) {
	t.mu.Lock()
	delete(t.all, w)
	t.mu.Unlock()
	w.close()
}

// poll enters a watcher under a fresh id.
func (t *watcherTable) poll(w *watcher) string {
	var b [12]byte
	_, _ = rand.Read(b[:])
	id := "w" + hex.EncodeToString(b[:])
	t.mu.Lock()
	defer t.mu.Unlock()
	t.polled[id] = &polledWatcher{w: w, used: time.Now()}
	return id
}

func (t *watcherTable) polledByID(id string, forget bool) (*watcher, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.polled[id]
	if p == nil {
		return nil, nacre.Errorf(nacre.CodeNotFound, "watcher with id '%s' not found", validText(id))
	}
	p.used = time.Now()
	if forget {
		delete(t.polled, id)
	}
	return p.w, nil
}

func (t *watcherTable) closeAll() {
	t.mu.Lock()
	t.closed = true
	all := t.all
	t.all, t.polled = map[*watcher]struct{}{}, map[string]*polledWatcher{}
	t.mu.Unlock()
	for w := range all {
		w.close()
	}
}

// lostEvents is the error for events that could not be kept.
func lostEvents(n int) error {
	return nacre.Errorf(nacre.CodeExhausted, "%d or more events were lost, for more happened than can be kept: list the directory to catch up", n)
}

func (s *filesystemService) watch(req connect.AnyRequest, path string, recursive bool) (*watcher, error) {
	_, abs, err := s.target(req, path)
	if err != nil {
		return nil, err
	}
	if err := isDir(abs); err != nil {
		return nil, rpcError(err)
	}
	w, err := s.a.watchers.open(abs, recursive)
	return w, rpcError(err)
}

func (s *filesystemService) CreateWatcher(_ context.Context, req *connect.Request[pb.CreateWatcherRequest]) (*connect.Response[pb.CreateWatcherResponse], error) {
	w, err := s.watch(req, req.Msg.GetPath(), req.Msg.GetRecursive())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.CreateWatcherResponse{WatcherId: s.a.watchers.poll(w)}), nil
}

func (s *filesystemService) GetWatcherEvents(_ context.Context, req *connect.Request[pb.GetWatcherEventsRequest]) (*connect.Response[pb.GetWatcherEventsResponse], error) {
	w, err := s.a.watchers.polledByID(req.Msg.GetWatcherId(), false)
	if err != nil {
		return nil, rpcError(err)
	}
	w.drain()
	events, lost := w.take()
	if lost > 0 && len(events) == 0 {
		return nil, rpcError(lostEvents(lost))
	}
	w.lostAgain(lost) // told by the next call, after what was kept
	return connect.NewResponse(&pb.GetWatcherEventsResponse{Events: events}), nil
}

func (s *filesystemService) RemoveWatcher(_ context.Context, req *connect.Request[pb.RemoveWatcherRequest]) (*connect.Response[pb.RemoveWatcherResponse], error) {
	w, err := s.a.watchers.polledByID(req.Msg.GetWatcherId(), true)
	if err != nil {
		return nil, rpcError(err)
	}
	s.a.watchers.release(w)
	return connect.NewResponse(&pb.RemoveWatcherResponse{}), nil
}

func (s *filesystemService) WatchDir(ctx context.Context, req *connect.Request[pb.WatchDirRequest], stream *connect.ServerStream[pb.WatchDirResponse]) error {
	w, err := s.watch(req, req.Msg.GetPath(), req.Msg.GetRecursive())
	if err != nil {
		return err
	}
	defer s.a.watchers.release(w)
	start := &pb.WatchDirResponse{Event: &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}}
	if err := stream.Send(start); err != nil {
		return err
	}
	silence := keepaliveInterval(req.Header())
	keepalive := time.NewTicker(silence)
	defer keepalive.Stop()
	var over <-chan time.Time
	if limit := requestTimeout(ctx); limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	for {
		events, lost := w.take()
		for _, e := range events {
			if err := stream.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Filesystem{Filesystem: e}}); err != nil {
				return err
			}
		}
		if lost > 0 {
			return rpcError(lostEvents(lost))
		}
		if len(events) > 0 {
			keepalive.Reset(silence)
		}
		select {
		case <-w.more:
		case <-keepalive.C:
			if err := stream.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}}); err != nil {
				return err
			}
		case <-over:
			return connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("the time to watch is over"))
		case <-ctx.Done():
			return connect.NewError(connect.CodeCanceled, ctx.Err())
		}
	}
}
