package control_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"pgregory.net/rapid"
)

// contents is what a sandbox, or a snapshot, holds: the text of each file, and the
// processes that run.
type contents struct {
	files map[string]string
	procs []string // tags
}

func (c contents) copy() contents {
	out := contents{files: map[string]string{}, procs: slices.Clone(c.procs)}
	for k, v := range c.files {
		out.files[k] = v
	}
	return out
}

// box is what the model knows of one sandbox.
type box struct {
	state  nacre.State
	holds  contents
	parent nacre.SandboxID
	born   time.Time
	end    nacre.EndReason
}

// history is a world with a model of what every sandbox and every snapshot holds.
type history struct {
	*world
	boxes map[nacre.SandboxID]*box
	snaps map[nacre.SnapshotID]*snapModel
	n     int
}

type snapModel struct {
	holds contents
	of    nacre.SandboxID
}

// TestAnyKeptHistory: whatever mix of writes, programs, pauses, resumes, snapshots,
// restores, forks and kills happens, with restarts and kills of the daemon in between
// and in the middle, every sandbox holds exactly what it must.
func TestAnyKeptHistory(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f != nil && f.Value.String() == f.DefValue {
		if err := f.Value.Set("15"); err != nil { // each starts many daemons
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(f.DefValue) }()
	}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.start()
		defer func() { w.stop() }()
		h := &history{world: w, boxes: map[nacre.SandboxID]*box{}, snaps: map[nacre.SnapshotID]*snapModel{}}
		h.create(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"create": h.create, "write": h.write, "exec": h.exec, "pause": h.pause, "resume": h.resume,
			"snapshot": h.snapshot, "restore": h.restore, "fork": h.fork, "fork snapshot": h.forkSnapshot,
			"kill": h.kill, "delete snapshot": h.deleteSnapshot,
			"restart": func(*rapid.T) { h.world.restart() }, "kill -9": func(*rapid.T) { h.afterCrash() },
			"": h.check,
		})
		for id, b := range h.boxes { // nothing is lost in those that sleep
			if b.state == nacre.StatePaused {
				h.world.resume(id)
				b.state = nacre.StateRunning
			}
		}
		h.check(rt)
	})
}

// pick draws a sandbox in one of the states.
func (h *history) pick(rt *rapid.T, states ...nacre.State) (nacre.SandboxID, *box) {
	var ids []nacre.SandboxID
	for id, b := range h.boxes {
		if slices.Contains(states, b.state) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		rt.Skip("there is none")
	}
	slices.SortFunc(ids, func(a, b nacre.SandboxID) int { return strings.Compare(h.order(a), h.order(b)) })
	id := rapid.SampledFrom(ids).Draw(rt, "sandbox")
	return id, h.boxes[id]
}

// order makes what is drawn independent of random ids.
func (h *history) order(id nacre.SandboxID) string {
	return h.boxes[id].born.Format(time.RFC3339Nano) + string(id)
}

func (h *history) pickSnapshot(rt *rapid.T, of func(*snapModel) bool) nacre.SnapshotID {
	var ids []nacre.SnapshotID
	for id, n := range h.snaps {
		if of == nil || of(n) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		rt.Skip("there is none")
	}
	slices.Sort(ids)
	return rapid.SampledFrom(ids).Draw(rt, "snapshot")
}

// during runs an operation, in half of the cases with a kill of the daemon somewhere in
// it. dead tells that the daemon was killed; the next one runs by then.
func (h *history) during(rt *rapid.T, op func() error) (dead bool, err error) {
	if !rapid.Bool().Draw(rt, "with a kill -9") {
		if err = op(); err != nil {
			rt.Fatal(err)
		}
		return false, nil
	}
	h.crashAt(rapid.IntRange(1, 30).Draw(rt, "boundary"))
	err = op()
	h.afterCrash()
	h.settles("after a kill -9")
	return true, err
}

func (h *history) create(*rapid.T) {
	s := h.world.create(nacre.CreateRequest{Timeout: time.Hour})
	h.boxes[s.ID] = &box{state: nacre.StateRunning, holds: contents{files: map[string]string{}}, born: time.Now()}
}

func (h *history) write(rt *rapid.T) {
	id, b := h.pick(rt, nacre.StateRunning)
	path := rapid.SampledFrom([]string{"/a", "/b"}).Draw(rt, "path")
	h.n++
	h.world.write(id, path, fmt.Sprint(h.n))
	b.holds.files[path] = fmt.Sprint(h.n)
}

func (h *history) exec(rt *rapid.T) {
	id, b := h.pick(rt, nacre.StateRunning)
	agent, err := h.node.Agent(h.tb.Context(), id)
	if err != nil {
		rt.Fatal(err)
	}
	h.n++
	tag := fmt.Sprintf("p%d", h.n)
	p, err := agent.Processes().Start(h.tb.Context(), nacre.ProcessSpec{Cmd: "sleep", Args: []string{"3600"}, Tag: tag})
	if err != nil {
		rt.Fatal(err)
	}
	p.Close()
	b.holds.procs = append(b.holds.procs, tag)
}

// found sets the model's state of a sandbox to what a killed daemon left, of the
// legal ones.
func (h *history) found(rt *rapid.T, id nacre.SandboxID, legal ...nacre.State) nacre.State {
	got := h.get(id)
	if !slices.Contains(legal, got.State) {
		rt.Fatalf("%s is %s (%s %s), legal is %v", id, got.State, got.EndReason, got.Detail, legal)
	}
	h.boxes[id].state = got.State
	return got.State
}

func (h *history) pause(rt *rapid.T) {
	id, b := h.pick(rt, nacre.StateRunning)
	dead, err := h.during(rt, func() error {
		_, err := h.svc.Pause(h.tb.Context(), team, id, nacre.PauseRequest{})
		return err
	})
	if dead && err != nil {
		h.found(rt, id, nacre.StateRunning, nacre.StatePaused)
		return
	}
	b.state = nacre.StatePaused
}

func (h *history) resume(rt *rapid.T) {
	id, b := h.pick(rt, nacre.StatePaused)
	dead, err := h.during(rt, func() error {
		_, _, err := h.svc.Resume(h.tb.Context(), team, id, nacre.ResumeRequest{})
		return err
	})
	if dead && err != nil {
		h.found(rt, id, nacre.StateRunning, nacre.StatePaused)
		return
	}
	b.state = nacre.StateRunning
}

func (h *history) snapshot(rt *rapid.T) {
	id, b := h.pick(rt, nacre.StateRunning, nacre.StatePaused)
	if b.state == nacre.StatePaused && h.snaps[h.get(id).Snapshot] != nil {
		rt.Skip("it is paused at a snapshot already")
	}
	var n nacre.Snapshot
	dead, err := h.during(rt, func() (err error) {
		n, err = h.svc.Snapshot(h.tb.Context(), team, id, nacre.SnapshotRequest{})
		return err
	})
	if err == nil {
		h.snaps[n.ID] = &snapModel{holds: b.holds.copy(), of: id}
	} else if dead {
		h.adopt(id, b)
	}
}

// adopt takes up a snapshot that a killed daemon made, but did not tell of.
func (h *history) adopt(id nacre.SandboxID, b *box) {
	for _, n := range h.snapshots()[nacre.SnapshotUser] {
		if h.snaps[n.ID] == nil {
			h.snaps[n.ID] = &snapModel{holds: b.holds.copy(), of: id}
		}
	}
}

func (h *history) restore(rt *rapid.T) {
	id, b := h.pick(rt, nacre.StateRunning, nacre.StatePaused)
	n := h.pickSnapshot(rt, func(n *snapModel) bool {
		for of := id; of != ""; of = h.boxes[of].parent {
			if n.of == of {
				return true
			}
		}
		return false
	})
	was := b.state
	dead, err := h.during(rt, func() error {
		_, err := h.svc.Restore(h.tb.Context(), team, id, n)
		return err
	})
	if dead && err != nil {
		got := h.get(id)
		// Not begun, or at the snapshot: paused at it, or running from it.
		if got.State == nacre.StateRunning && was == nacre.StateRunning && got.Origin != n && got.Snapshot == "" {
			return
		}
		if got.Snapshot != n && got.Origin != n {
			h.found(rt, id, was)
			return
		}
		if got.Origin == n && got.State == nacre.StateRunning && was == got.State && h.same(id, b.holds) {
			return // it ran from there before, and nothing was begun
		}
		h.found(rt, id, nacre.StatePaused, nacre.StateRunning)
		b.holds = h.snaps[n].holds.copy()
		return
	}
	b.state, b.holds = nacre.StateRunning, h.snaps[n].holds.copy()
}

func (h *history) fork(rt *rapid.T) {
	id, b := h.pick(rt, nacre.StateRunning, nacre.StatePaused)
	h.copies(rt, nacre.ForkRequest{Sandbox: id, Count: 2}, id, b.holds)
}

func (h *history) forkSnapshot(rt *rapid.T) {
	n := h.pickSnapshot(rt, nil)
	h.copies(rt, nacre.ForkRequest{Snapshot: n, Count: 1}, h.snaps[n].of, h.snaps[n].holds)
}

func (h *history) copies(rt *rapid.T, r nacre.ForkRequest, parent nacre.SandboxID, holds contents) {
	_, err := h.during(rt, func() error {
		return forked(h.svc.Fork(h.tb.Context(), team, r))
	})
	made := 0
	page, lerr := h.svc.List(h.tb.Context(), team, nacre.SandboxFilter{States: []nacre.State{nacre.StateRunning}, Limit: 1000})
	if lerr != nil {
		rt.Fatal(lerr)
	}
	for _, s := range page.Sandboxes {
		if h.boxes[s.ID] == nil {
			made++
			h.boxes[s.ID] = &box{state: nacre.StateRunning, holds: holds.copy(), parent: parent, born: time.Now()}
		}
	}
	if err == nil && made != r.Count {
		rt.Fatalf("%d copies of %d", made, r.Count)
	}
}

func (h *history) kill(rt *rapid.T) {
	id, b := h.pick(rt, nacre.StateRunning, nacre.StatePaused)
	was := b.state
	dead, err := h.during(rt, func() error { return h.svc.Kill(h.tb.Context(), team, id) })
	if dead && err != nil && h.found(rt, id, was, nacre.StateEnded) == was {
		return
	}
	b.state, b.end = nacre.StateEnded, nacre.EndKilled
}

func (h *history) deleteSnapshot(rt *rapid.T) {
	n := h.pickSnapshot(rt, nil)
	for id, b := range h.boxes {
		if b.state == nacre.StatePaused && h.get(id).Snapshot == n {
			if err := h.svc.DeleteSnapshot(h.tb.Context(), team, n); !nacre.IsCode(err, nacre.CodeConflict) {
				rt.Fatalf("deleted under %s: %v", id, err)
			}
			return
		}
	}
	dead, err := h.during(rt, func() error { return h.svc.DeleteSnapshot(h.tb.Context(), team, n) })
	if dead && err != nil {
		if _, err := h.svc.GetSnapshot(h.tb.Context(), team, n); err == nil {
			return
		}
	}
	delete(h.snaps, n)
}

// same tells whether a running sandbox holds that.
func (h *history) same(id nacre.SandboxID, c contents) bool {
	for _, path := range []string{"/a", "/b"} {
		if h.read(id, path) != c.files[path] {
			return false
		}
	}
	agent, err := h.node.Agent(h.tb.Context(), id)
	if err != nil {
		h.tb.Fatal(err)
	}
	list, err := agent.Processes().List(h.tb.Context())
	if err != nil {
		h.tb.Fatal(err)
	}
	var tags []string
	for _, p := range list {
		tags = append(tags, p.Tag)
	}
	slices.Sort(tags)
	want := slices.Clone(c.procs)
	slices.Sort(want)
	return slices.Equal(tags, want)
}

// check compares everything with the model.
func (h *history) check(rt *rapid.T) {
	for id, b := range h.boxes {
		got := h.get(id)
		if got.State != b.state || got.EndReason != b.end || got.Parent != b.parent {
			rt.Fatalf("%s is %s (%s %s) and a copy of %q, must be %s (%s) and of %q", id, got.State, got.EndReason, got.Detail, got.Parent, b.state, b.end, b.parent)
		}
		if b.state == nacre.StateRunning && !h.same(id, b.holds) {
			rt.Fatalf("%s does not hold %+v", id, b.holds)
		}
	}
	users := h.snapshots()[nacre.SnapshotUser]
	if len(users) != len(h.snaps) {
		rt.Fatalf("%d snapshots, must be %d", len(users), len(h.snaps))
	}
	for _, n := range users {
		if h.snaps[n.ID] == nil || n.Sandbox != h.snaps[n.ID].of {
			rt.Fatalf("nobody made %+v", n)
		}
	}
	h.settles("history")
}
