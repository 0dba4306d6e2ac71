package node_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
)

func wantCode(t *testing.T, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Fatalf("got %v, want code %q", err, code)
	}
}

// TestFault11_FullDiskAtEachStepOfAStart: whichever step fails, nothing is left, and
// the next start works without a restart.
func TestFault11_FullDiskAtEachStepOfAStart(t *testing.T) {
	for _, op := range []string{"images.prepare", "network.acquire", "runtime.start", "agent.init"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t)
			w.host.SetHook(func(at string, _ nacre.MachineID) error {
				if at == op {
					return nacre.Errorf(nacre.CodeNoSpace, "the disk is full")
				}
				return nil
			})
			n := w.start()
			_, err := n.Start(t.Context(), w.spec())
			wantCode(t, err, nacre.CodeNoSpace)
			if l := w.leaks(); len(l) > 0 {
				t.Fatalf("left behind: %v", l)
			}
			for _, d := range []string{"handles", "machines"} {
				if left, _ := os.ReadDir(filepath.Join(w.dir, "node", d)); len(left) > 0 {
					t.Fatalf("%s: %v", d, left)
				}
			}
			w.host.SetHook(nil)
			w.begin()
		})
	}
}

func TestAGuestThatNeverAnswers(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(c *node.Config) { c.BootTimeout = 30 * time.Millisecond }
	w.host.SetHook(func(at string, _ nacre.MachineID) error {
		if at == "agent.healthy" {
			return nacre.Errorf(nacre.CodeUnavailable, "connection refused")
		}
		return nil
	})
	n := w.start()
	_, err := n.Start(t.Context(), w.spec())
	wantCode(t, err, nacre.CodeDeadline)
	if l := w.leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
}

func TestAGuestThatDiesWhileItStarts(t *testing.T) {
	w := newWorld(t)
	w.host.SetHook(func(at string, id nacre.MachineID) error {
		if at == "agent.healthy" {
			go w.host.Machine(id).Crash(nacre.EndOOM, "too big for its limit")
			return nacre.Errorf(nacre.CodeUnavailable, "connection refused")
		}
		return nil
	})
	n := w.start()
	begin := time.Now()
	_, err := n.Start(t.Context(), w.spec())
	if err == nil || !strings.Contains(nacre.ErrorMessage(err), "too big for its limit") {
		t.Fatalf("got %v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Fatalf("it was noticed after %s", d)
	}
	w.eventually("nothing is left", func() bool { return len(w.leaks()) == 0 })
}

// TestFault21_Overcommit: what does not fit is refused with a reason, and what
// runs goes on.
func TestFault21_Overcommit(t *testing.T) {
	for _, c := range []struct {
		name  string
		tweak func(*node.Config)
		stats node.HostStats
		says  string
	}{
		{"sandboxes", func(c *node.Config) { c.Admission.MaxSandboxes = 2 }, node.HostStats{}, "may run 2"},
		{"promised memory", func(c *node.Config) { c.Admission.Overcommit = 0.01 }, node.HostStats{}, "are promised to sandboxes"},
		{"real memory", nil, node.HostStats{MemoryTotal: 64 << 30, MemoryAvailable: 3 << 30, DiskTotal: 1 << 40, DiskFree: 1 << 39}, "short of memory"},
		{"disk", nil, node.HostStats{MemoryTotal: 64 << 30, MemoryAvailable: 60 << 30, DiskTotal: 1 << 40, DiskFree: 1 << 30}, "short of disk space"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.tweak = c.tweak
			n := w.start()
			a, _ := w.begin()
			b, _ := w.begin()
			if c.stats != (node.HostStats{}) {
				w.stats.Store(&c.stats)
				time.Sleep(120 * time.Millisecond) // the figures are read at most every 100 ms
			}
			_, err := n.Start(t.Context(), w.spec())
			wantCode(t, err, nacre.CodeExhausted)
			if !strings.Contains(nacre.ErrorMessage(err), c.says) {
				t.Fatalf("the message %q does not say %q", nacre.ErrorMessage(err), c.says)
			}
			for _, s := range []nacre.StartSpec{a, b} {
				if _, ok := n.Route(s.Sandbox); !ok {
					t.Fatal("a running sandbox was hurt")
				}
			}
		})
	}
}

// TestBootsWaitForTheirTurn: more creates at once than may boot wait, and each is
// answered; a queue that is full says so.
func TestBootsWaitForTheirTurn(t *testing.T) {
	w := newWorld(t)
	w.host.BootTime = 5 * time.Millisecond
	var mu sync.Mutex
	booting, most := 0, 0
	w.host.SetHook(func(at string, _ nacre.MachineID) error {
		mu.Lock()
		defer mu.Unlock()
		switch at {
		case "runtime.start":
			booting++
			most = max(most, booting)
		case "agent.init":
			booting--
		}
		return nil
	})
	w.tweak = func(c *node.Config) { c.Admission.MaxBoots = 3 }
	n := w.start()
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if _, err := n.Start(t.Context(), w.spec()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most > 3 {
		t.Fatalf("%d booted at once", most)
	}

	w2 := newWorld(t)
	w2.host.BootTime = time.Hour
	w2.tweak = func(c *node.Config) { c.Admission.MaxBoots, c.Admission.MaxQueue, c.BootTimeout = 1, 1, time.Hour }
	n = w2.start()
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 3)
	for range 3 {
		go func() { _, err := n.Start(ctx, w2.spec()); errs <- err }()
	}
	wantCode(t, <-errs, nacre.CodeExhausted)
	cancel()
	for range 2 {
		if err := <-errs; err == nil {
			t.Fatal("started")
		}
	}
}

func TestStandbys(t *testing.T) {
	shape := node.Shape{Build: build, Resources: resources}
	begin := func(t *testing.T) *world {
		w := newWorld(t)
		w.tweak = func(c *node.Config) {
			c.Standby = node.Standby{Count: 2, Quiet: time.Millisecond, Check: 10 * time.Millisecond}
		}
		w.start()
		w.n.KeepReady(shape)
		w.eventually("two standbys are ready", func() bool { return w.standbys() == 2 })
		return w
	}
	t.Run("a create takes one, and it is replaced", func(t *testing.T) {
		w := begin(t)
		for _, m := range w.host.Machines() {
			if p, _ := w.host.Policy(m.Spec.ID); !p.DenyAll {
				t.Fatal("a standby may reach the network")
			}
			if in, n := m.Guest.Init(); n != 1 || in.Env != nil || in.AccessToken == "" {
				t.Fatal("a standby is open, or was told who it is")
			}
		}
		spec := w.spec()
		spec.Network.AllowOut = []string{"192.0.2.1"}
		st, err := w.n.Start(t.Context(), spec)
		if err != nil || st.BootPath != nacre.BootStandby {
			t.Fatalf("%+v, %v", st, err)
		}
		p, _ := w.host.Policy(st.Machine)
		if p.DenyAll || len(p.Allow) != 1 {
			t.Fatalf("policy: %+v", p)
		}
		w.eventually("it is replaced", func() bool { return w.standbys() == 2 })
	})
	t.Run("steady creates do not starve the pool", func(t *testing.T) {
		w := newWorld(t)
		w.tweak = func(c *node.Config) { c.Standby = node.Standby{Count: 1, Quiet: time.Hour, Patience: time.Millisecond} }
		w.start()
		w.begin() // a moment ago, and quiet is an hour
		w.n.KeepReady(shape)
		w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
	})
	t.Run("another shape boots", func(t *testing.T) {
		w := begin(t)
		spec := w.spec()
		spec.Resources.MemoryMiB = 512
		st, err := w.n.Start(t.Context(), spec)
		if err != nil || st.BootPath != nacre.BootCold {
			t.Fatalf("%+v, %v", st, err)
		}
	})
	t.Run("they outlive the daemon", func(t *testing.T) {
		w := begin(t)
		before := len(w.host.Machines())
		w.restart()
		if got := w.standbys(); got != before {
			t.Fatalf("%d of %d standbys were taken back", got, before)
		}
		spec := w.spec()
		if st, err := w.n.Start(t.Context(), spec); err != nil || st.BootPath != nacre.BootStandby {
			t.Fatalf("%+v, %v", st, err)
		}
	})
	t.Run("a dead or silent one is replaced", func(t *testing.T) {
		w := begin(t)
		ms := w.host.Machines()
		ms[0].Crash(nacre.EndCrash, "gone")
		silent := ms[1].Spec.ID
		w.host.SetHook(func(op string, id nacre.MachineID) error {
			if op == "agent.healthy" && id == silent {
				return nacre.Errorf(nacre.CodeUnavailable, "silent")
			}
			return nil
		})
		w.eventually("both are replaced", func() bool {
			return w.host.Machine(ms[0].Spec.ID) == nil && w.host.Machine(silent) == nil && w.standbys() == 2
		})
	})
	t.Run("they make room for a create", func(t *testing.T) {
		w := begin(t)
		w.n.KeepReady(shape)
		short := true
		var mu sync.Mutex
		w.restartWith(func(c *node.Config) {
			c.Standby = node.Standby{Count: 2, Quiet: time.Hour, Check: time.Hour}
			c.Host = func() (node.HostStats, error) {
				mu.Lock()
				defer mu.Unlock()
				s := *w.stats.Load()
				if short {
					s.MemoryAvailable = 1 << 30
					if len(w.host.Machines()) == 0 {
						s.MemoryAvailable = 8 << 30
					}
				}
				return s, nil
			}
		})
		spec := w.spec()
		spec.Resources.MemoryMiB = 512
		if _, err := w.n.Start(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if got := w.standbys(); got != 0 {
			t.Fatalf("%d standbys are left", got)
		}
	})
	t.Run("one that cannot be handed over does not fail the create", func(t *testing.T) {
		w := begin(t)
		var once sync.Once
		w.host.SetHook(func(op string, _ nacre.MachineID) (err error) {
			if op == "agent.init" {
				once.Do(func() { err = nacre.Errorf(nacre.CodeUnavailable, "reset") })
			}
			return err
		})
		if _, err := w.n.Start(t.Context(), w.spec()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFault30_Identifiers: ids that strangers make up reach no path and no machine.
func TestFault30_Identifiers(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	for _, id := range []nacre.SandboxID{"", "..", "../handles", "i/../../etc/passwd", "i' OR 1=1 --", "i\r\nX: y", "iÄÖÜ0000000000000000", "i$(reboot)0000000000", "m0000000000000000"} {
		spec := w.spec()
		spec.Sandbox = id
		if _, err := n.Start(t.Context(), spec); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("start %q: %v", id, err)
		}
		if err := n.Stop(t.Context(), id); err != nil {
			t.Errorf("stop %q: %v", id, err)
		}
		if l, err := n.Logs(t.Context(), id, nacre.LogQuery{}); err != nil || len(l) != 0 {
			t.Errorf("logs of %q: %v, %v", id, l, err)
		}
		if _, ok := n.Route(id); ok {
			t.Errorf("route of %q", id)
		}
	}
}

func TestNoSecretOnDisk(t *testing.T) {
	w := newWorld(t)
	w.start()
	spec := w.spec()
	spec.Env, spec.Secure = map[string]string{"PASSWORD": "correct horse battery"}, true
	if _, err := w.n.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	token := nacre.TokenKey{}.AccessToken(spec.Sandbox, 0)
	err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), "correct horse") || strings.Contains(string(data), token) {
			t.Errorf("%s holds a secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(w.logged(), "correct horse") || strings.Contains(w.logged(), token) {
		t.Error("the log holds a secret")
	}
}

// tunnelAgent reaches the guest's loopback.
type tunnelAgent struct{ nacre.Agent }

func (tunnelAgent) Tunnel(context.Context, int) (net.Conn, error) {
	a, b := net.Pipe()
	go func() { _, _ = b.Write([]byte("loop!")); b.Close() }()
	return a, nil
}

func TestDialFallsBackToTheGuestsLoopback(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(c *node.Config) {
		c.NewAgent = func(dial func(context.Context, int) (net.Conn, error), host, access string) nacre.Agent {
			return tunnelAgent{w.fake.NewAgent(dial, host, access)}
		}
	}
	w.start()
	spec, _ := w.begin()
	c, err := w.n.Dial(t.Context(), spec.Sandbox, 3000)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 5)
	if _, err := c.Read(buf); err != nil || string(buf) != "loop!" {
		t.Fatalf("read %q, %v", buf, err)
	}
}

// TestAStopThatFailsCanBeRepeated: what could not be taken down stays known.
func TestAStopThatFailsCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	spec, _ := w.begin()
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "network.release" {
			return errors.New("busy")
		}
		return nil
	})
	wantCode(t, n.Stop(t.Context(), spec.Sandbox), nacre.CodeUnavailable)
	if list, _ := n.Machines(t.Context()); len(list) != 1 {
		t.Fatalf("machines: %v", list)
	}
	w.host.SetHook(nil)
	if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
		t.Fatal(err)
	}
	if l := w.leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
}
