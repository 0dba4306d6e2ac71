package api_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/nacretest/fakeservice"
	"github.com/nacrehq/nacre/sqlstore"
)

// thing is a handler that makes things, behind the header.
type thing struct {
	t     *testing.T
	store *sqlstore.DB
	teams *fakeservice.Teams
	key   string
	made  atomic.Int32
	// make, when set, runs instead of making a thing.
	make func(*api.Call) error

	mu  sync.Mutex
	now time.Time
}

func newThing(t *testing.T) *thing {
	store, err := sqlstore.Open(t.Context(), filepath.Join(t.TempDir(), "nacre.db"), sqlstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	x := &thing{t: t, store: store, teams: &fakeservice.Teams{}, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	_, x.key = x.teams.NewTeam("a")
	return x
}

func (x *thing) clock() time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.now
}

func (x *thing) advance(d time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.now = x.now.Add(d)
}

// handler is one server's; there may be several over the store.
func (x *thing) handler() http.Handler {
	once := &api.Once{Requests: x.store, Clock: x.clock}
	handle := once.Handler(func(c *api.Call) error {
		if x.make != nil {
			return x.make(c)
		}
		return c.JSON(http.StatusCreated, map[string]int32{"thing": x.made.Add(1)})
	})
	return api.Dialect{
		Routes: []api.Route{{Method: "POST", Path: "/things", Handle: handle}, {Method: "POST", Path: "/others", Handle: handle}},
		Auth:   api.NewAuth(x.teams, x.clock),
		WriteError: func(w http.ResponseWriter, _ *http.Request, err error) {
			_ = api.WriteJSON(w, map[nacre.Code]int{nacre.CodeInvalid: 422, nacre.CodeConflict: 409}[nacre.ErrorCode(err)], nacre.ErrorMessage(err))
		},
	}.Handler()
}

func send(ctx context.Context, h http.Handler, key, path, once, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, "POST", "http://api.test"+path, strings.NewReader(body))
	r.Header.Set("X-Api-Key", key)
	if once != "" {
		r.Header.Set(api.HeaderKey, once)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func (x *thing) post(path, once, body string) *httptest.ResponseRecorder {
	return send(x.t.Context(), x.handler(), x.key, path, once, body)
}

func (x *thing) want(what string, w *httptest.ResponseRecorder, status int, body string) {
	x.t.Helper()
	if w.Code != status || !strings.Contains(w.Body.String(), body) {
		x.t.Errorf("%s: %d %s, want %d %s", what, w.Code, w.Body, status, body)
	}
}

// TestOnceADay: a repeat gets the same status and body, from any server, for a day; a
// request without a key and one to another path are their own.
func TestOnceADay(t *testing.T) {
	x := newThing(t)
	x.want("the first", x.post("/things", "k", "{}"), 201, `{"thing":1}`)
	again := x.post("/things", "k", "{}")
	x.want("the repeat", again, 201, `{"thing":1}`)
	if h := again.Header(); h.Get(api.HeaderReplay) != "true" || h.Get("Content-Type") != "application/json" {
		t.Errorf("headers of a repeat: %v", h)
	}
	x.want("without a key", x.post("/things", "", "{}"), 201, `{"thing":2}`)
	x.want("another path", x.post("/others", "k", "{}"), 201, `{"thing":3}`)
	x.want("another body", x.post("/things", "k", `{"a":1}`), 422, "used for another request")
	_, x.key = x.teams.NewTeam("b")
	x.want("another team", x.post("/things", "k", `{"b":1}`), 201, `{"thing":4}`)
	x.want("a long key", x.post("/things", strings.Repeat("k", 256), "{}"), 422, "255")
	x.advance(25 * time.Hour)
	x.want("the next day", x.post("/things", "k", `{"c":1}`), 201, `{"thing":5}`)
}

// TestOnceAtOnce: many at once, on two servers, are one.
func TestOnceAtOnce(t *testing.T) {
	x := newThing(t)
	release := make(chan struct{})
	begun := make(chan struct{}, 100)
	x.make = func(c *api.Call) error {
		begun <- struct{}{}
		<-release
		return c.JSON(http.StatusCreated, map[string]int32{"thing": x.made.Add(1)})
	}
	servers := []http.Handler{x.handler(), x.handler()}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			x.want("request "+strconv.Itoa(i), send(t.Context(), servers[i%2], x.key, "/things", "k", "{}"), 201, `{"thing":1}`)
		})
	}
	<-begun
	close(release)
	wg.Wait()
	if n := x.made.Load(); n != 1 {
		t.Errorf("%d things were made", n)
	}
}

// TestOnceFailed: a failure is told, and the key is free for another try.
func TestOnceFailed(t *testing.T) {
	x := newThing(t)
	x.make = func(*api.Call) error { return nacre.Errorf(nacre.CodeConflict, "not now") }
	x.want("a failure", x.post("/things", "k", "{}"), 409, "not now")
	x.make = nil
	x.want("the next try", x.post("/things", "k", "{}"), 201, `{"thing":1}`)
}

// TestOnceClientGone: a request with a key is finished though its client went away,
// and the repeat gets its answer.
func TestOnceClientGone(t *testing.T) {
	x := newThing(t)
	ctx, gone := context.WithCancel(t.Context())
	x.make = func(c *api.Call) error {
		gone()
		if err := c.R.Context().Err(); err != nil {
			return err
		}
		return c.JSON(http.StatusCreated, map[string]int32{"thing": x.made.Add(1)})
	}
	send(ctx, x.handler(), x.key, "/things", "k", "{}")
	x.want("the repeat", x.post("/things", "k", "{}"), 201, `{"thing":1}`)
}

// TestOnceLost: a server that dies with a request leaves its key blocked for as long
// as the lease, and then whoever sends it next runs it, knowing that it may have
// happened.
func TestOnceLost(t *testing.T) {
	x := newThing(t)
	died := make(chan struct{})
	x.make = func(c *api.Call) error {
		if m := api.MarkOf(c.R.Context()); m.ID == "" || m.Taken {
			t.Errorf("mark of the first: %+v", m)
		}
		close(died)
		select {} // nobody hears of it again
	}
	go x.post("/things", "k", "{}")
	<-died
	x.make = func(c *api.Call) error {
		m := api.MarkOf(c.R.Context())
		if !m.Taken || len(m.ID) != 32 {
			t.Errorf("mark of who took over: %+v", m)
		}
		if err := api.NotAgain(c); err == nil {
			t.Error("it may run again in silence")
		}
		return c.JSON(http.StatusCreated, map[string]int32{"thing": x.made.Add(1)})
	}
	joined := make(chan *httptest.ResponseRecorder)
	go func() { joined <- x.post("/things", "k", "{}") }()
	x.advance(31 * time.Second)
	x.want("after the lease", <-joined, 201, `{"thing":1}`)
	x.want("a repeat", x.post("/things", "k", "{}"), 201, `{"thing":1}`)
}
