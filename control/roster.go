package control

import (
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// roster is what this process knows of the sandboxes that are alive: how many each
// team has, when their time is over by the monotonic clock, and which of them
// traffic wakes.
type roster struct {
	mu     sync.Mutex
	loaded bool // the store's records are in
	alive  map[nacre.SandboxID]*member
	teams  map[nacre.TeamID]*tally
	queue  deadlines
	wake   chan struct{} // the earliest deadline changed
	counts map[*census]bool
}

// tally counts a team's sandboxes. Those that are not paused are active.
type tally struct{ active, paused int }

type member struct {
	id     nacre.SandboxID
	team   nacre.TeamID
	paused bool // else it counts as active

	running bool
	until   time.Time     // its deadline, with a monotonic reading; zero for none
	idle    time.Duration // 0 for never
	active  time.Time     // from when on idle counts
	used    time.Time     // when it was touched last; zero for not yet
	tries   int           // how often the pause at its deadline failed

	route *nacre.Route // of one that traffic wakes

	index int       // in the queue; -1 when not
	at    time.Time // its place there: not after due
}

func newRoster() *roster {
	return &roster{alive: map[nacre.SandboxID]*member{}, teams: map[nacre.TeamID]*tally{}, wake: make(chan struct{}, 1), counts: map[*census]bool{}}
}

// count is called with mu held.
func (r *roster) count(team nacre.TeamID) *tally {
	t := r.teams[team]
	if t == nil {
		t = &tally{}
		r.teams[team] = t
	}
	return t
}

// enter adds a sandbox that does not run yet; false when the team has max active
// ones already.
func (r *roster) enter(team nacre.TeamID, id nacre.SandboxID, max int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.alive[id] != nil {
		return true
	}
	t := r.count(team)
	if max > 0 && t.active >= max {
		return false
	}
	r.alive[id] = &member{id: id, team: team, index: -1}
	t.active++
	return true
}

// rouse counts a paused sandbox as an active one; false when the team has max of
// these already.
func (r *roster) rouse(id nacre.SandboxID, max int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.alive[id]
	if m == nil || !m.paused {
		return true
	}
	t := r.count(m.team)
	if max > 0 && t.active >= max {
		return false
	}
	m.paused = false
	t.paused--
	t.active++
	return true
}

// leave forgets a sandbox.
func (r *roster) leave(id nacre.SandboxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.counts {
		c.left[id] = true
	}
	m := r.alive[id]
	if m == nil {
		return
	}
	delete(r.alive, id)
	t := r.count(m.team)
	if m.paused {
		t.paused--
	} else {
		t.active--
	}
	if *t == (tally{}) {
		delete(r.teams, m.team)
	}
	r.unqueue(m)
}

// run says that a sandbox runs, for d from now unless it is always on.
func (r *roster) run(rec nacre.Sandbox, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[rec.ID]; m != nil {
		r.runs(m, rec, d)
	}
}

// runs is called with mu held, as is sleeps.
func (r *roster) runs(m *member, rec nacre.Sandbox, d time.Duration) {
	now := time.Now()
	m.running, m.until, m.idle, m.active = true, now.Add(d), rec.IdleTimeout, now
	if rec.AlwaysOn {
		m.until = time.Time{}
	}
	m.route = wakeRoute(rec)
	r.requeue(m)
}

// halt takes the time off a sandbox that is about to be paused or restored.
func (r *roster) halt(id nacre.SandboxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil {
		m.running = false
		r.unqueue(m)
	}
}

// sleep says that a sandbox is paused.
func (r *roster) sleep(rec nacre.Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[rec.ID]; m != nil {
		r.sleeps(m, rec)
	}
}

func (r *roster) sleeps(m *member, rec nacre.Sandbox) {
	r.unqueue(m)
	m.running, m.route, m.tries = false, wakeRoute(rec), 0
	if !m.paused {
		m.paused = true
		t := r.count(m.team)
		t.active--
		t.paused++
	}
}

// wakeRoute is the route of a sandbox that traffic wakes, nil for another.
func wakeRoute(rec nacre.Sandbox) *nacre.Route {
	if !rec.AutoResume {
		return nil
	}
	return &nacre.Route{Sandbox: rec.ID, Team: rec.TeamID, TokenEpoch: rec.TokenEpoch, Secure: rec.Secure, Network: rec.Network}
}

// asleep returns the route of a sandbox that traffic wakes and that does not run.
func (r *roster) asleep(id nacre.SandboxID) (nacre.Route, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.alive[id]
	if m == nil || m.running || m.route == nil {
		return nacre.Route{}, false
	}
	return *m.route, true
}

// sleepers returns the routes of all that asleep knows.
func (r *roster) sleepers() []nacre.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []nacre.Route
	for _, m := range r.alive {
		if !m.running && m.route != nil {
			out = append(out, *m.route)
		}
	}
	return out
}

// touch says that a sandbox was used just now.
func (r *roster) touch(id nacre.SandboxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil {
		m.used = time.Now()
		m.active = m.used // its place in the queue is put right when it comes up
	}
}

// lastUse is when a sandbox was touched last.
func (r *roster) lastUse(id nacre.SandboxID) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil {
		return m.used
	}
	return time.Time{}
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

// tally returns how many a team has.
func (r *roster) tally(team nacre.TeamID) tally {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.teams[team]; t != nil {
		return *t
	}
	return tally{}
}
