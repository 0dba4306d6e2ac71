package control

import (
	"container/heap"
	"time"

	"github.com/nacrehq/nacre"
)

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

// setDeadline sets a running sandbox's deadline, which has a monotonic reading.
func (r *roster) setDeadline(id nacre.SandboxID, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil && m.running {
		m.until, m.tries = until, 0
		r.requeue(m)
	}
}

// clearDeadline takes a sandbox's deadline away.
func (r *roster) clearDeadline(id nacre.SandboxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil && m.running {
		m.until = time.Time{}
		r.requeue(m)
	}
}

// setIdleTimeout sets after how long without use a sandbox ends, beginning now.
func (r *roster) setIdleTimeout(id nacre.SandboxID, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil {
		m.idle, m.active = d, time.Now()
		if m.running {
			r.requeue(m)
		}
	}
}

// retryLater gives a sandbox whose time is over, but that could not be ended or paused, the
// time until the next attempt, and returns it.
func (r *roster) retryLater(id nacre.SandboxID, wait func(tries int) time.Duration) (d time.Duration) {
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

// back puts one that due took out back into the queue.
func (r *roster) back(id nacre.SandboxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.alive[id]; m != nil && m.running && m.index < 0 {
		r.requeue(m)
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
