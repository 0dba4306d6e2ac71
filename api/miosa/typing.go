package miosa

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/coder/websocket"

	"github.com/nacrehq/nacre"
)

const (
	maxTermWaits = 1 << 20 // bytes that wait until the program reads, beside one frame
	frameBytes   = 64      // what a frame costs beside its bytes, roughly
)

// typing passes on what the client of a terminal sends. Who reads the socket never
// waits for the guest: while a program does not read what is typed, pings are answered
// and the terminal gets its size.
type typing struct {
	g    *guest
	j    *job
	conn *websocket.Conn

	frames chan struct{} // has one when some may wait
	sizes  chan struct{} // has one when the terminal is to get a size
	sized  chan struct{} // has one when it may have got one
	ended  chan struct{} // closed when nothing is passed on any more

	mu    sync.Mutex
	waits []frame
	bytes int // of waits
	size  nacre.TermSize
	asked int // how many sizes were asked for
	given int // how many of them the terminal has, or will not get
}

// frame is what the client sent. What is typed after a resize is for a terminal of
// that size; what was typed before one does not hold it up.
type frame struct {
	kind  websocket.MessageType
	data  []byte
	after int // sizes that were asked for before it
}

// request is a text frame.
type request struct {
	Type string `json:"type"`
	Data string `json:"data"`
	terminalBody
}

func newTyping(g *guest, j *job, conn *websocket.Conn) *typing {
	return &typing{g: g, j: j, conn: conn,
		frames: make(chan struct{}, 1), sizes: make(chan struct{}, 1), sized: make(chan struct{}, 1), ended: make(chan struct{})}
}

// run ends with the socket. What cannot be done is told and does no harm; where
// something that was typed may be lost the socket is ended, so that what follows is not
// passed on.
func (t *typing) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(t.ended)
		if err := t.passAll(ctx); err != nil {
			refuse(ctx, t.conn, err)
		}
	})
	wg.Go(func() { t.resizeAll(ctx) })
	for {
		kind, data, err := t.conn.Read(ctx)
		if err != nil {
			return
		}
		t.g.api.touch(t.g.id)
		if size, ok := sizeAsked(kind, data); ok {
			t.resize(size)
			continue
		}
		if !t.push(frame{kind: kind, data: data}) {
			refuse(ctx, t.conn, nacre.Errorf(nacre.CodeExhausted, "the program does not read what is typed, and %d bytes of it wait already", maxTermWaits))
			return
		}
	}
}

// push has a frame wait for its turn; false when too much waits.
func (t *typing) push(f frame) bool {
	select {
	case <-t.ended:
		return true // nobody wants it: the shell has ended, or the socket is about to
	default:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bytes > maxTermWaits {
		return false
	}
	f.after = t.asked
	t.waits = append(t.waits, f)
	t.bytes += len(f.data) + frameBytes
	wake(t.frames)
	return true
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// next waits for a frame, and until the terminal has the size that it is for.
func (t *typing) next(ctx context.Context) (frame, bool) {
	for {
		t.mu.Lock()
		if len(t.waits) > 0 && t.waits[0].after <= t.given {
			f := t.waits[0]
			t.waits[0] = frame{}
			t.waits = t.waits[1:]
			t.bytes -= len(f.data) + frameBytes
			t.mu.Unlock()
			return f, true
		}
		t.mu.Unlock()
		select {
		case <-t.frames:
		case <-t.sized:
		case <-ctx.Done():
			return frame{}, false
		}
	}
}

// passAll does one frame after the other. An error means that something that was typed
// may be lost.
func (t *typing) passAll(ctx context.Context) error {
	for {
		f, ok := t.next(ctx)
		if !ok {
			return nil
		}
		err := t.pass(ctx, f)
		switch {
		case err == nil:
		case ctx.Err() != nil, nacre.IsCode(err, nacre.CodeNotFound):
			return nil // it has ended
		case nacre.IsCode(err, nacre.CodeInvalid):
			if tell(ctx, t.conn, err) != nil {
				return nil
			}
		default:
			return err
		}
	}
}

// pass does one frame: binary ones are bytes, text ones are requests.
func (t *typing) pass(ctx context.Context, f frame) error {
	if f.kind == websocket.MessageText {
		var in request
		if err := json.Unmarshal(f.data, &in); err != nil {
			return nacre.Invalidf("", "a text frame must be a request in JSON; bytes for the terminal go in binary frames")
		}
		switch in.Type {
		case "resize": // one that cannot be done
			_, err := in.size()
			return err
		case "stdin", "input":
			f.data = []byte(in.Data)
		default:
			return nacre.Invalidf("type", "type %.40q is neither resize nor input", in.Type)
		}
	}
	// Asked each time: after a pause the sandbox is another machine.
	agent, err := t.g.api.Traffic.Agent(ctx, t.g.id)
	if err != nil {
		return starting(t.g.id)
	}
	return agent.Processes().Input(ctx, t.j.pid, f.data)
}

// sizeAsked tells what size a frame asks for.
func sizeAsked(kind websocket.MessageType, data []byte) (nacre.TermSize, bool) {
	var in request
	if kind != websocket.MessageText || json.Unmarshal(data, &in) != nil || in.Type != "resize" {
		return nacre.TermSize{}, false
	}
	size, err := in.size()
	return size, err == nil
}

// resize asks for a size, in place of an earlier one that waits.
func (t *typing) resize(size nacre.TermSize) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.size = size
	t.asked++
	wake(t.sizes)
}

// resizeAll gives the terminal the sizes that are asked for.
func (t *typing) resizeAll(ctx context.Context) {
	for {
		select {
		case <-t.sizes:
		case <-ctx.Done():
			return
		}
		t.mu.Lock()
		size, n := t.size, t.asked
		t.mu.Unlock()
		agent, err := t.g.api.Traffic.Agent(ctx, t.g.id)
		if err != nil {
			err = starting(t.g.id)
		} else {
			err = agent.Processes().Resize(ctx, t.j.pid, size)
		}
		if err != nil && ctx.Err() == nil && !nacre.IsCode(err, nacre.CodeNotFound) && tell(ctx, t.conn, err) != nil {
			return
		}
		t.mu.Lock()
		t.given = n
		t.mu.Unlock()
		wake(t.sized)
	}
}
