package node_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
)

// asked counts what the host asks of its guests.
type asked struct {
	mu    sync.Mutex
	times map[string][]time.Time // by operation and machine
}

func (w *world) asked() *asked {
	a := &asked{times: map[string][]time.Time{}}
	w.host.SetHook(func(op string, id nacre.MachineID) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		key := op + " " + string(id)
		a.times[key] = append(a.times[key], time.Now())
		return nil
	})
	return a
}

func (a *asked) of(op string, id nacre.MachineID) []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.times[op+" "+string(id)]
}

// TestAFirstCommandHasTheGuestToItself: the host asks a sandbox for nothing while its
// first command runs, and loses nothing of its log by that.
func TestAFirstCommandHasTheGuestToItself(t *testing.T) {
	w := newWorld(t)
	w.start()
	a := w.asked()
	begin := time.Now()
	spec, st := w.begin()
	guest := w.host.Machine(st.Machine).Guest
	guest.Log(nacre.LogStdout, "the first line", nil)
	w.eventually("its log is asked for", func() bool { return len(a.of("agent.logs", st.Machine)) > 0 })
	if after := a.of("agent.logs", st.Machine)[0].Sub(begin); after < 50*time.Millisecond {
		t.Errorf("its log was asked for %s after its start", after)
	}
	w.eventually("the line is there", func() bool { return w.lines(spec.Sandbox) == "the first line" })

	for {
		begin = time.Now()
		spec, st = w.begin()
		w.host.Machine(st.Machine).Guest.Log(nacre.LogStdout, "its only line", nil)
		if err := w.n.Stop(t.Context(), spec.Sandbox); err != nil {
			t.Fatal(err)
		}
		if got := w.lines(spec.Sandbox); got != "its only line" {
			t.Errorf("the log of a sandbox that was stopped at once: %q", got)
		}
		asked := a.of("agent.logs", st.Machine)
		if len(asked) == 1 {
			break
		}
		if len(asked) == 0 || asked[0].Sub(begin) < 50*time.Millisecond {
			t.Fatalf("its log was asked for %d times", len(asked))
		} // else a busy host did not stop it at once
	}
}

func (w *world) lines(id nacre.SandboxID) string {
	w.tb.Helper()
	list, err := w.n.Logs(w.tb.Context(), id, nacre.LogQuery{})
	if err != nil {
		w.tb.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Message)
	}
	return strings.Join(out, "\n")
}

// overAgent is an agent that can be told over a connection that it is given.
type overAgent struct {
	nacre.Agent
	all *overs
}

// overs remembers which connections guests were greeted and told over.
type overs struct {
	mu            sync.Mutex
	greeted, told []net.Conn
	inits         []nacre.AgentInit
	err           error         // of the next words over a spare connection
	patience      time.Duration // of the last of them
	broken        net.Conn
	woken         func(net.Conn) // called when a guest was woken over a spare connection
}

func (a overAgent) Greet(_ context.Context, conn net.Conn) error {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if conn == a.all.broken {
		return errors.New("reset by the guest")
	}
	a.all.greeted = append(a.all.greeted, conn)
	return nil
}

func (a overAgent) Init(ctx context.Context, in nacre.AgentInit) error {
	a.all.mu.Lock()
	a.all.inits = append(a.all.inits, in)
	a.all.mu.Unlock()
	return a.Agent.Init(ctx, in)
}

func (a overAgent) InitOver(ctx context.Context, conn net.Conn, in nacre.AgentInit, ready func() error) error {
	a.all.mu.Lock()
	a.all.told = append(a.all.told, conn)
	if until, ok := ctx.Deadline(); ok {
		a.all.patience = time.Until(until)
	}
	err := a.all.err
	a.all.mu.Unlock()
	if a.all.woken != nil {
		a.all.woken(conn)
	}
	if err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	return a.Init(ctx, in)
}

func (o *overs) world(t *testing.T, standby node.Standby) *world {
	w := newWorld(t)
	w.tweak = func(c *node.Config) {
		c.Standby = standby
		c.NewAgent = func(dial func(context.Context, int) (net.Conn, error), host, access string) nacre.Agent {
			return overAgent{w.fake.NewAgent(dial, host, access), o}
		}
	}
	w.start()
	return w
}

// ready returns the connections that were greeted so far.
func (o *overs) ready() []net.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.greeted)
}

// TestTheFirstConnectionIsThere: a client's first request to the agent waits for no
// connection, the second has one of its own, and nobody waits for one that is not used.
func TestTheFirstConnectionIsThere(t *testing.T) {
	all := &overs{}
	w := all.world(t, node.Standby{})
	spec, _ := w.begin()
	w.eventually("it is made", func() bool { return len(all.ready()) == 1 })
	ahead := all.ready()[0]
	found := 0
	ask := func() bool {
		conn, err := w.n.Dial(t.Context(), spec.Sandbox, nacre.AgentPort)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		if conn == ahead {
			found++
		}
		return found > 0
	}
	w.eventually("the connection is there", ask)
	for range 10 {
		ask()
	}
	if found != 1 {
		t.Errorf("the connection that was there was given %d times", found)
	}
	w.begin()
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the end of the node waited %s", took)
	}
}

// TestAStandbyIsToldOverTheConnectionOfItsFirstClient: a create connects to nothing,
// and neither does its first command; where that connection is of no use another one
// is, and the standby with it.
func TestAStandbyIsToldOverTheConnectionOfItsFirstClient(t *testing.T) {
	for name, broken := range map[string]error{"as it was": nil, "broken": errors.New("reset by the guest")} {
		t.Run(name, func(t *testing.T) {
			all := &overs{err: broken}
			w := all.world(t, node.Standby{Count: 1, Quiet: time.Hour, Patience: time.Hour, Check: time.Hour}) // and no second one
			w.n.KeepReady(node.Shape{Build: build, Resources: resources})
			w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
			if len(all.greeted) != 1 || len(all.told) != 0 {
				t.Fatalf("a standby's connections: %d greeted, %d told over", len(all.greeted), len(all.told))
			}
			spare := all.greeted[0]
			spec, st := w.begin()
			if st.BootPath != nacre.BootStandby || len(all.inits) != 2 {
				t.Fatalf("%s, told %d times", st.BootPath, len(all.inits))
			}
			waits, given := all.inits[0], all.inits[1]
			if !waits.NewIdentity || len(waits.Entropy) < 32 || given.NewIdentity || len(given.Entropy) > 0 || given.HostToken != waits.HostToken {
				t.Errorf("it waited with %+v and was given as %+v", waits, given)
			}
			var conn net.Conn
			w.eventually("its first client's connection is there", func() bool {
				var err error
				if conn, err = w.n.Dial(t.Context(), spec.Sandbox, nacre.AgentPort); err != nil {
					t.Fatal(err)
				}
				_ = conn.Close()
				return (conn == spare) == (broken == nil)
			})
			all.mu.Lock()
			defer all.mu.Unlock()
			if len(all.told) != 1 || all.told[0] != spare {
				t.Errorf("told over %d connections", len(all.told))
			}
			if broken == nil && len(all.greeted) != 1 {
				t.Errorf("%d connections were greeted", len(all.greeted))
			}
			if _, err := spare.Write([]byte{0}); err == nil {
				t.Error("the connection was left open")
			}
		})
	}
}

// TestAStandbyWakesBeforeItIsTold: its handle says whose it is before it is told, and not
// before it is woken; one whose handle cannot be written is told nothing.
func TestAStandbyWakesBeforeItIsTold(t *testing.T) {
	for name, broken := range map[string]bool{"told": false, "no handle": true} {
		t.Run(name, func(t *testing.T) {
			all := &overs{}
			w := all.world(t, node.Standby{Count: 1, Quiet: time.Hour, Patience: time.Hour, Check: time.Hour})
			w.n.KeepReady(node.Shape{Build: build, Resources: resources})
			w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
			handles := filepath.Join(w.dir, "node", "handles")
			unmet := func() int {
				found, err := filepath.Glob(filepath.Join(handles, "*.unmet.json"))
				if err != nil {
					t.Fatal(err)
				}
				return len(found)
			}
			woken := 0
			all.woken = func(net.Conn) {
				if woken++; unmet() != 0 {
					t.Error("the handle was written before the guest was woken")
				}
				if broken {
					if err := os.RemoveAll(handles); err != nil {
						t.Error(err)
					}
				}
			}
			spec := w.spec()
			spec.Chosen = func(st nacre.Started) {
				if n := unmet(); n != 1 {
					t.Errorf("%d handles say that their guest knows nothing yet", n)
				}
			}
			_, err := w.n.Start(t.Context(), spec)
			if (err != nil) != broken || woken != 1 {
				t.Fatalf("woken %d times, then %v", woken, err)
			}
			all.mu.Lock()
			defer all.mu.Unlock()
			if want := map[bool]int{false: 2, true: 1}[broken]; len(all.inits) != want { // the first as a standby
				t.Errorf("told %d times, want %d", len(all.inits), want)
			}
			if broken {
				if err := os.MkdirAll(handles, 0o700); err != nil { // for its end
					t.Fatal(err)
				}
			}
		})
	}
}

// TestARestoredGuestIsToldAtOnce: its agent answered before, so the first word to it is
// whose it is now, and the record may be written meanwhile.
func TestARestoredGuestIsToldAtOnce(t *testing.T) {
	all := &overs{}
	w := all.world(t, node.Standby{})
	source, _ := w.begin()
	id := nacre.NewSnapshotID()
	if _, err := w.n.Snapshot(t.Context(), source.Sandbox, nacre.SnapshotSpec{ID: id, Transient: true}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the source's connection is there", func() bool { return len(all.ready()) == 1 })
	asked := w.asked()
	spec := w.spec()
	spec.Snapshot = id
	var chosen []nacre.Started
	spec.Chosen = func(st nacre.Started) { chosen = append(chosen, st) }
	st, err := w.n.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if len(chosen) != 1 || chosen[0].Machine != st.Machine || chosen[0].BootPath != nacre.BootWarm || st.BootPath != nacre.BootWarm {
		t.Errorf("chosen was %+v, and started %+v", chosen, st)
	}
	if n := len(asked.of("agent.healthy", st.Machine)); n > 0 {
		t.Errorf("it was asked %d times whether it answers", n)
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	if len(all.told) != 1 || len(all.inits) != 2 || !all.inits[1].NewIdentity || len(all.inits[1].Entropy) < 32 {
		t.Errorf("told over %d connections: %+v", len(all.told), all.inits)
	}
}

// TestARestoredStandbyHasTimeForItsFirstAnswer: as much as a boot has, for it reads its
// memory for that.
func TestARestoredStandbyHasTimeForItsFirstAnswer(t *testing.T) {
	all := &overs{}
	w := all.world(t, node.Standby{Count: 1, Quiet: time.Millisecond, Check: time.Hour})
	source, _ := w.begin()
	id := nacre.NewSnapshotID()
	if _, err := w.n.Snapshot(t.Context(), source.Sandbox, nacre.SnapshotSpec{ID: id}); err != nil {
		t.Fatal(err)
	}
	w.n.KeepReady(node.Shape{Build: build, Resources: resources, Snapshot: id})
	w.eventually("the standby is ready", func() bool { return w.standbys() == 1 })
	all.mu.Lock()
	defer all.mu.Unlock()
	if len(all.told) != 1 || all.patience < 20*time.Second {
		t.Errorf("told over %d connections, with %s to answer", len(all.told), all.patience)
	}
}

// TestAStandbyHasRunCommands: a client's first command is not the guest's first.
func TestAStandbyHasRunCommands(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(c *node.Config) { c.Standby = node.Standby{Count: 1, Quiet: time.Millisecond} }
	w.start()
	a := w.asked()
	w.n.KeepReady(node.Shape{Build: build, Resources: resources})
	w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
	if n := len(a.of("agent.start", w.host.Machines()[0].Spec.ID)); n != 3 {
		t.Errorf("it has run %d commands", n)
	}
}

// TestStandbysAreNotAskedWhileSandboxesStart: not even whether they answer.
func TestStandbysAreNotAskedWhileSandboxesStart(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(c *node.Config) {
		c.Standby = node.Standby{Count: 2, Quiet: 300 * time.Millisecond, Patience: time.Hour, Check: 5 * time.Millisecond}
	}
	w.start()
	w.n.KeepReady(node.Shape{Build: build, Resources: resources})
	w.eventually("two standbys are ready", func() bool { return w.standbys() == 2 })
	a := w.asked()
	_, st := w.begin()
	begin := a.of("agent.init", st.Machine)[0] // the start had begun, and had not ended
	var other nacre.MachineID
	for _, m := range w.host.Machines() {
		if m.Spec.ID != st.Machine {
			other = m.Spec.ID
		}
	}
	w.eventually("the other is asked", func() bool {
		all := a.of("agent.healthy", other)
		return len(all) > 0 && all[len(all)-1].After(begin)
	})
	early := 0
	for _, at := range a.of("agent.healthy", other) {
		if after := at.Sub(begin); after > 0 && after < 250*time.Millisecond {
			early++
		}
	}
	if early > 1 { // one may have been on its way; they are asked every 5 ms
		t.Errorf("the standby was asked %d times while a sandbox started", early)
	}
}

// TestAStandbyIsAskedOverTheConnectionOfItsFirstClient: whether it answers is asked
// over the connection that it keeps, which so lasts as long as it waits, and no other is
// made for that. One that broke meanwhile is replaced before anybody needs it.
func TestAStandbyIsAskedOverTheConnectionOfItsFirstClient(t *testing.T) {
	all := &overs{}
	w := all.world(t, node.Standby{Count: 1, Quiet: time.Millisecond, Check: 5 * time.Millisecond})
	w.n.KeepReady(node.Shape{Build: build, Resources: resources})
	w.eventually("the standby is asked", func() bool { return len(all.ready()) > 3 })
	spare := all.ready()[0]
	for _, conn := range all.ready() {
		if conn != spare {
			t.Fatal("it was asked over a connection that nobody else will have")
		}
	}
	all.mu.Lock()
	all.broken = spare
	all.mu.Unlock()
	w.eventually("it has another", func() bool {
		greeted := all.ready()
		return greeted[len(greeted)-1] != spare
	})
	if _, err := spare.Write([]byte{0}); err == nil {
		t.Error("the broken connection was left open")
	}
	if w.standbys() != 1 {
		t.Error("the standby was given up for its connection")
	}
}
