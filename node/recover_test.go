package node_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
)

func (w *world) restartWith(tweak func(*node.Config)) {
	w.tb.Helper()
	w.tweak = tweak
	w.restart()
}

// TestAStandbyMeetsOneSandboxOnly: killed at any moment of a hand-over, the next
// daemon never offers a machine that has learned a tenant's environment.
func TestAStandbyMeetsOneSandboxOnly(t *testing.T) {
	for at := 1; at <= 12; at++ {
		w := newWorld(t)
		w.tweak = func(c *node.Config) { c.Standby = node.Standby{Count: 1, Quiet: time.Millisecond} }
		w.start()
		w.n.KeepReady(node.Shape{Build: build, Resources: resources})
		w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
		w.n.KeepReady()
		w.fake.KillAt(at, nil)
		spec := w.spec()
		spec.Env = map[string]string{"SECRET": "tenant a"}
		_, _ = w.n.Start(t.Context(), spec) // killed, or not
		w.tweak = func(c *node.Config) { c.Standby.Count = 0 }
		w.restart()
		other := w.spec()
		st, err := w.n.Start(t.Context(), other)
		if err != nil {
			t.Fatal(err)
		}
		if _, inits := w.host.Machine(st.Machine).Guest.Init(); inits != 1 {
			t.Fatalf("killed at %d: the second sandbox got a machine that was told %d times who it is", at, inits)
		}
	}
}

// TestAnUpgradeRenewsStandbys: a server that boots guests with another agent gives up the
// standbys that it finds, so that no new sandbox has what the upgrade mended. One with the
// same agent keeps them, and what is a sandbox's goes on in either case.
func TestAnUpgradeRenewsStandbys(t *testing.T) {
	for agent, kept := range map[string]bool{"/data/nacre-agent-old": true, "/other/nacre-agent-old": true, "/data/nacre-agent-new": false} {
		w := newWorld(t)
		set := func(path string) {
			w.tweak = func(c *node.Config) {
				c.AgentPath, c.Standby = path, node.Standby{Count: 1, Quiet: time.Millisecond}
			}
		}
		set("/data/nacre-agent-old")
		w.start()
		spec, _ := w.begin()
		w.n.KeepReady(node.Shape{Build: build, Resources: resources})
		w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
		before := w.host.Machines()
		set(agent)
		w.restart()
		w.n.KeepReady(node.Shape{Build: build, Resources: resources})
		w.eventually("a standby is ready", func() bool { return w.standbys() == 1 && len(w.host.Machines()) == 2 })
		all := true
		for _, m := range w.host.Machines() {
			all = all && slices.Contains(before, m)
		}
		if all != kept {
			t.Errorf("%s: the standby is the one of before: %v", agent, all)
		}
		if list, err := w.n.Machines(t.Context()); err != nil || len(list) != 1 || list[0].Sandbox != spec.Sandbox || list[0].Exit != nil {
			t.Errorf("%s: the sandbox: %+v, %v", agent, list, err)
		}
		w.stop()
	}
}

func TestRecoverFindsWhyAMachineIsGone(t *testing.T) {
	exits := func(t *testing.T, w *world) nacre.Exit {
		list, err := w.n.Machines(t.Context())
		if err != nil || len(list) != 1 || list[0].Exit == nil {
			t.Fatalf("machines: %+v, %v", list, err)
		}
		return *list[0].Exit
	}
	t.Run("it ended while the daemon was down, and the runtime knows why", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		_, st := w.begin()
		w.fake.Kill()
		w.stop()
		w.host.Machine(st.Machine).Crash(nacre.EndOOM, "memory")
		w.start()
		w.eventually("the exit is known", func() bool {
			list, _ := w.n.Machines(t.Context())
			return len(list) == 1 && list[0].Exit != nil
		})
		if e := exits(t, w); e.Reason != nacre.EndOOM || e.Detail != "memory" {
			t.Fatalf("exit: %+v", e)
		}
	})
	t.Run("nobody knows", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.begin()
		w.fake.Kill()
		w.stop()
		w.host.Vanish()
		w.start()
		if e := exits(t, w); e.Reason != nacre.EndCrash || e.Detail == "" {
			t.Fatalf("exit: %+v", e)
		}
		if l := w.leaks(); len(l) > 0 {
			t.Fatalf("left behind: %v", l)
		}
	})
	t.Run("the host was restarted", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		_, st := w.begin()
		w.fake.Kill()
		w.stop()
		w.host.Vanish()
		path := filepath.Join(w.dir, "node", "handles", string(st.Machine)+".json")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		i := strings.Index(string(data), `"BootID":"`) + len(`"BootID":"`)
		data[i] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		w.start()
		if e := exits(t, w); e.Reason != nacre.EndNodeLost {
			t.Fatalf("exit: %+v", e)
		}
	})
}

// TestTornHandle: a handle that a power cut left torn costs its sandbox and nothing
// else; its machine is swept.
func TestTornHandle(t *testing.T) {
	w := newWorld(t)
	w.start()
	good, _ := w.begin()
	_, st := w.begin()
	w.fake.Kill()
	w.stop()
	dir := filepath.Join(w.dir, "node", "handles")
	for name, content := range map[string]string{
		string(st.Machine) + ".json":    `{"Version":1,"Handle":{"Mach`,
		"m0000000000000000.json":        "",
		"m1111111111111111.json":        `{"Version":99}`,
		"m2222222222222222.json":        `{"Version":1,"Handle":{"Machine":"../../../etc"}}`,
		"m3333333333333333.json.tmp":    `{`,
		"../machines/m4444444444444444": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.start()
	list, err := w.n.Machines(t.Context())
	if err != nil || len(list) != 1 || list[0].Sandbox != good.Sandbox {
		t.Fatalf("machines: %+v, %v", list, err)
	}
	w.eventually("the rest is swept", func() bool { return len(w.leaks()) == 0 })
	bad, _ := filepath.Glob(filepath.Join(dir, "*.bad"))
	if len(bad) != 4 {
		t.Fatalf("set aside: %v", bad)
	}
	w.eventually("stale directories are swept", func() bool {
		left, _ := os.ReadDir(filepath.Join(w.dir, "node", "machines"))
		return len(left) == 1
	})
}

// TestFault08_Leftovers: thousands of leftovers do not delay the start.
func TestFault08_Leftovers(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "runtime.sweep" {
			<-hold
		}
		return nil
	})
	w.start() // returns although the sweep hangs
	spec, _ := w.begin()
	close(hold)
	w.n.Stop(t.Context(), spec.Sandbox)
}

// TestFault43_PolicySurvivesARestart: also one that was changed while it ran.
func TestFault43_PolicySurvivesARestart(t *testing.T) {
	w := newWorld(t)
	w.start()
	spec, st := w.begin()
	p := nacre.EgressPolicy{DenyAll: true, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	if err := w.n.SetEgress(t.Context(), spec.Sandbox, p); err != nil {
		t.Fatal(err)
	}
	w.restart()
	got, ok := w.host.Policy(st.Machine)
	if !ok || fmt.Sprint(got) != fmt.Sprint(p) {
		t.Fatalf("policy after the restart: %+v", got)
	}
}

func TestCloseLeavesMachinesRunning(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	w.begin()
	w.stop()
	if got := len(w.host.Machines()); got != 1 {
		t.Fatalf("%d machines run", got)
	}
	_, err := n.Start(t.Context(), w.spec())
	wantCode(t, err, nacre.CodeUnavailable)
}

// TestFault03_KilledInAHandOver: killed at any moment of handing a standby over, the
// sandbox runs on a guest that knows whose it is, or it has ended as failed.
func TestFault03_KilledInAHandOver(t *testing.T) {
	for at, burnt := 1, true; burnt; at++ {
		w := newWorld(t)
		w.tweak = func(c *node.Config) { c.Standby = node.Standby{Count: 1, Quiet: time.Hour, Patience: time.Hour} }
		w.start()
		w.n.KeepReady(node.Shape{Build: build, Resources: resources})
		w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
		spec := w.spec()
		spec.Secure = true
		handles := filepath.Join(w.dir, "node", "handles")
		then := t.TempDir() // the dead write nothing
		w.fake.KillAt(at, func() {
			if err := os.CopyFS(then, os.DirFS(handles)); err != nil {
				t.Error(err)
			}
		})
		st, err := w.n.Start(t.Context(), spec)
		burnt = w.fake.Killed()
		if err == nil && st.BootPath != nacre.BootStandby {
			t.Fatalf("step %d: it was started %s", at, st.BootPath)
		}
		w.fake.Kill()
		w.stop()
		if burnt {
			if err := errors.Join(os.RemoveAll(handles), os.CopyFS(handles, os.DirFS(then))); err != nil {
				t.Fatal(err)
			}
		}
		w.start()
		list, lerr := w.n.Machines(t.Context())
		if lerr != nil || len(list) > 1 || err == nil && len(list) != 1 {
			t.Fatalf("step %d: %d machines, %v; the start: %v", at, len(list), lerr, err)
		}
		for _, m := range list {
			in, _ := w.host.Machine(m.Machine).Guest.Init()
			knows := in.AccessToken == (nacre.TokenKey{}).AccessToken(spec.Sandbox, spec.TokenEpoch)
			switch {
			case m.Exit == nil && !knows:
				t.Fatalf("step %d: a guest that does not know whose it is is handed out", at)
			case m.Exit != nil && (m.Exit.Reason != nacre.EndFailed || err == nil):
				t.Fatalf("step %d: it ended: %+v; the start: %v", at, *m.Exit, err)
			}
		}
		w.stop()
	}
}
