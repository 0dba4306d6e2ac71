package control

import (
	"slices"
	"time"

	"github.com/nacrehq/nacre"
)

// census is what is remembered while the store's records are read.
type census struct {
	before []nacre.SandboxID        // who was on the roster when it began
	left   map[nacre.SandboxID]bool // who left since: its record may be an old one
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
