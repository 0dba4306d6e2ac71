package node

import (
	"maps"
	"slices"
	"time"
)

// Beside the shapes that KeepReady names the first few standbys are kept of the
// shapes that are in demand: the latest demandShapes of those that were asked for
// twice within demandTime, until nobody has asked for so long. A shape is a build of
// some size, or a template's warm snapshot; never a user's.
const (
	demandTime   = 10 * time.Minute
	demandShapes = 3
	demandMemory = 32 // shapes of which it is known when they were asked for
)

// demand is when a shape was asked for last, and the time before that.
type demand struct{ last, before time.Time }

func (d demand) lasts(now time.Time) bool {
	return !d.before.IsZero() && d.last.Sub(d.before) < demandTime && now.Sub(d.last) < demandTime
}

// asked notes that a start asks for the shape.
func (n *Node) asked(shape Shape) {
	n.mu.Lock()
	_, named := n.want[shape]
	if !named {
		if len(n.demand) >= demandMemory {
			delete(n.demand, n.longestAgo())
		}
		n.demand[shape] = demand{time.Now(), n.demand[shape].last}
	}
	n.mu.Unlock()
	if !named {
		n.wake()
	}
}

// longestAgo returns the shape that was not asked for for longest; n.mu is held.
func (n *Node) longestAgo() Shape {
	return slices.MinFunc(slices.Collect(maps.Keys(n.demand)), n.byDemand)
}

func (n *Node) byDemand(a, b Shape) int { return n.demand[a].last.Compare(n.demand[b].last) }

// wanted tells how many standbys of each shape there should be; n.mu is held.
func (n *Node) wanted() map[Shape]int {
	now := time.Now()
	var lately []Shape
	for s, d := range n.demand {
		if d.lasts(now) {
			lately = append(lately, s)
		}
	}
	if len(lately) == 0 {
		return n.want
	}
	slices.SortFunc(lately, n.byDemand)
	out := maps.Clone(n.want)
	for _, s := range lately[max(0, len(lately)-demandShapes):] {
		out[s] = max(out[s], min(first(), n.cfg.Standby.Count))
	}
	return out
}

// unwanted forgets a shape of which no standby can be made.
func (n *Node) unwanted(shape Shape) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.demand, shape)
}
