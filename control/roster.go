package control

import (
	"container/heap"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// roster is what this process knows of the sandboxes that are alive: how many each
// team has, and when their time is over by the monotonic clock.
type roster struct {
	mu     sync.Mutex
	loaded bool // the store's records are in
	alive  map[nacre.SandboxID]*member
	teams  map[nacre.TeamID]int
	queue  deadlines
	wake   chan struct{} // the earliest deadline changed
}

type member struct {
	id    nacre.SandboxID
	team  nacre.TeamID
	until time.Time // with a monotonic reading; zero while it has no deadline
	index int       // in the queue; -1 when not
}

func newRoster() *roster {
	return &roster{alive: map[nacre.SandboxID]*member{}, teams: map[nacre.TeamID]int{}, wake: make(chan struct{}, 1)}
}

// enter adds a sandbox that has no deadline yet; false when the team has max already.
func (r *roster) enter(team nacre.TeamID, id nacre.SandboxID, max int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.alive[id] != nil {
		return true
	}
	if max > 0 && r.teams[team] >= max {
		return false
	}
	r.alive[id] = &member{id: id, team: team, index: -1}
	r.teams[team]++
	return true
}

// leave forgets a sandbox.
func (r *roster) leave(id nacre.SandboxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.alive[id]
	if m == nil {
		return
	}
	delete(r.alive, id)
	if r.teams[m.team]--; r.teams[m.team] == 0 {
		delete(r.teams, m.team)
	}
	if m.index >= 0 {
		heap.Remove(&r.queue, m.index)
	}
}

// ends sets a sandbox's deadline to d from now.
func (r *roster) ends(id nacre.SandboxID, d time.Duration) {
	until := time.Now().Add(d)
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.alive[id]
	if m == nil {
		return
	}
	m.until = until
	if m.index >= 0 {
		heap.Fix(&r.queue, m.index)
	} else {
		heap.Push(&r.queue, m)
	}
	if m.index == 0 {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// due takes those out of the queue whose time is over, and returns when the next is.
func (r *roster) due() (over []member, next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for len(r.queue) > 0 {
		m := r.queue[0]
		if m.until.After(now) {
			return over, m.until
		}
		heap.Pop(&r.queue)
		over = append(over, *m)
	}
	return over, time.Time{}
}

// get returns what is known of a sandbox.
func (r *roster) get(id nacre.SandboxID) (member, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil {
		return *m, true
	}
	return member{}, false
}

// all returns everything that has a deadline.
func (r *roster) all() []member {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]member, 0, len(r.queue))
	for _, m := range r.queue {
		out = append(out, *m)
	}
	return out
}

// deadlines is a heap, the earliest first.
type deadlines []*member

func (q deadlines) Len() int           { return len(q) }
func (q deadlines) Less(i, j int) bool { return q[i].until.Before(q[j].until) }
func (q deadlines) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *deadlines) Push(x any) {
	m := x.(*member)
	m.index = len(*q)
	*q = append(*q, m)
}
func (q *deadlines) Pop() any {
	old := *q
	m := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	m.index = -1
	return m
}

// flight is the set of creates that this process has under way. The reconciler and
// the watcher of exits leave them alone: their create deals with them.
type flight struct {
	mu  sync.Mutex
	ids map[nacre.SandboxID]*nacre.Exit
}

func newFlight() *flight { return &flight{ids: map[nacre.SandboxID]*nacre.Exit{}} }

func (f *flight) begin(id nacre.SandboxID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ids[id] = nil
}

// end returns the exit that came meanwhile, nil when none did.
func (f *flight) end(id nacre.SandboxID) *nacre.Exit {
	f.mu.Lock()
	defer f.mu.Unlock()
	exit := f.ids[id]
	delete(f.ids, id)
	return exit
}

func (f *flight) has(id nacre.SandboxID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.ids[id]
	return ok
}

// note keeps an exit for the create to find; false when there is no such create.
func (f *flight) note(id nacre.SandboxID, exit nacre.Exit) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.ids[id]; !ok {
		return false
	}
	f.ids[id] = &exit
	return true
}
