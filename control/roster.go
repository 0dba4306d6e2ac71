package control

import (
	"container/heap"
	"slices"
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

// census is what is remembered while the store's records are read.
type census struct {
	before []nacre.SandboxID        // who was on the roster when it began
	left   map[nacre.SandboxID]bool // who left since: its record may be an old one
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

// due is when its time is over, as things are; zero for never.
func (m *member) due() time.Time {
	at := m.until
	if m.idle > 0 {
		if i := m.active.Add(m.idle); at.IsZero() || i.Before(at) {
			at = i
		}
	}
	return at
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

// again gives a sandbox whose time is over, but that could not be ended or paused, the
// time until the next attempt, and returns it.
func (r *roster) again(id nacre.SandboxID, wait func(tries int) time.Duration) (d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.alive[id]
	if m == nil {
		return 0
	}
	m.tries++
	d = wait(m.tries)
	now := time.Now()
	if !m.until.IsZero() && !m.until.After(now) {
		m.until = now.Add(d)
	}
	if m.idle > 0 && !m.active.Add(m.idle).After(now) {
		m.active = now.Add(d - m.idle)
	}
	m.running = true
	r.requeue(m)
	return d
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

// ends sets a running sandbox's deadline to d from now.
func (r *roster) ends(id nacre.SandboxID, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil && m.running {
		m.until, m.tries = time.Now().Add(d), 0
		r.requeue(m)
	}
}

// idles sets after how long without use a sandbox ends, beginning now.
func (r *roster) idles(id nacre.SandboxID, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil {
		m.idle, m.active = d, time.Now()
		if m.running {
			r.requeue(m)
		}
	}
}

// stays takes a sandbox's deadline away.
func (r *roster) stays(id nacre.SandboxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil && m.running {
		m.until = time.Time{}
		r.requeue(m)
	}
}

// back puts one that due took out back into the queue.
func (r *roster) back(id nacre.SandboxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil && m.running && m.index < 0 {
		r.requeue(m)
	}
}

// requeue puts a member where it belongs in the queue; mu is held.
func (r *roster) requeue(m *member) {
	if m.at = m.due(); m.at.IsZero() {
		r.unqueue(m)
		return
	}
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

func (r *roster) unqueue(m *member) {
	if m.index >= 0 {
		heap.Remove(&r.queue, m.index)
	}
}

// due takes those out of the queue whose time is over, and returns when the next is.
func (r *roster) due() (over []member, next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for len(r.queue) > 0 {
		m := r.queue[0]
		if m.at.After(now) {
			return over, m.at
		}
		if at := m.due(); at.After(now) { // it was used meanwhile
			m.at = at
			heap.Fix(&r.queue, 0)
			continue
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

// tally returns how many a team has.
func (r *roster) tally(team nacre.TeamID) tally {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.teams[team]; t != nil {
		return *t
	}
	return tally{}
}

// all returns everything that runs out.
func (r *roster) all() []member {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]member, 0, len(r.queue))
	for _, m := range r.queue {
		out = append(out, *m)
	}
	return out
}

// beginCensus is called before the records are read, endCensus after.
func (r *roster) beginCensus() *census {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &census{before: make([]nacre.SandboxID, 0, len(r.alive)), left: map[nacre.SandboxID]bool{}}
	for id := range r.alive {
		c.before = append(c.before, id)
	}
	r.counts[c] = true
	return c
}

func (r *roster) endCensus(c *census) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.counts, c)
}

// enroll adds a sandbox whose record a census read, with d left of its time, unless it
// is known already or has left since.
func (r *roster) enroll(c *census, rec nacre.Sandbox, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.alive[rec.ID] != nil || c.left[rec.ID] {
		return
	}
	m := &member{id: rec.ID, team: rec.TeamID, index: -1}
	r.alive[rec.ID] = m
	r.count(rec.TeamID).active++
	switch rec.State {
	case nacre.StateRunning:
		r.runs(m, rec, d)
	case nacre.StatePaused:
		r.sleeps(m, rec)
	}
}

func (r *roster) isLoaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loaded
}

func (r *roster) setLoaded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded = true
}

// beginCensus leaves out of before what this process has in its hands: the place in
// the order of records of the others no longer changes, so no page of a list misses
// them.
func (s *Service) beginCensus() *census {
	c := s.roster.beginCensus()
	c.before = slices.DeleteFunc(c.before, s.flight.has)
	return c
}

// deadlines is a heap, the earliest first.
type deadlines []*member

func (q deadlines) Len() int           { return len(q) }
func (q deadlines) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
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
