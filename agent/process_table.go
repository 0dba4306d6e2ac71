package agent

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sys/unix"
)

// A process that ended can be connected to for endRetention, so that a client
// whose stream broke at the wrong moment learns the result; the newest
// maxEnded of them.
const (
	endRetention = 30 * time.Second
	maxEnded     = 1024
)

// processTable owns every process that the agent started, and every wait: one
// goroutine collects all exit statuses, so that none is taken by the wrong one.
type processTable struct {
	init bool // reap orphans too
	logs *logRing
	log  *slog.Logger
	kept atomic.Int64 // running processes whose output is kept

	mu       sync.Mutex
	byPID    map[int]*process           // running, and ended ones within endRetention
	ended    []*process                 // oldest first
	starting int                        // forks whose pid is not in byPID yet
	early    map[int]syscall.WaitStatus // statuses that came while starting > 0

	wake chan os.Signal
	stop context.CancelFunc
	done chan struct{}
}

func newProcessTable(init bool, logs *logRing, log *slog.Logger) *processTable {
	ctx, stop := context.WithCancel(context.Background())
	t := &processTable{
		init: init, logs: logs, log: log,
		byPID: map[int]*process{},
		wake:  make(chan os.Signal, 1),
		stop:  stop,
		done:  make(chan struct{}),
	}
	signal.Notify(t.wake, syscall.SIGCHLD)
	go t.reap(ctx)
	return t
}

// close ends the reaper. Processes are left alone.
func (t *processTable) close() {
	signal.Stop(t.wake)
	t.stop()
	<-t.done
}

// reap collects statuses on each SIGCHLD. Signals coalesce, so each round goes
// on until nothing is left.
func (t *processTable) reap(ctx context.Context) {
	defer close(t.done)
	for {
		if t.init {
			t.reapAny()
		} else {
			t.reapOwn()
		}
		select {
		case <-t.wake:
		case <-ctx.Done():
			return
		}
	}
}

// reapAny is PID 1's way: whatever ended is collected.
func (t *processTable) reapAny() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		t.mu.Lock()
		p := t.byPID[pid]
		if p == nil || p.isReaped() {
			if t.starting > 0 {
				if t.early == nil {
					t.early = map[int]syscall.WaitStatus{}
				}
				t.early[pid] = ws
			}
			p = nil
		}
		t.mu.Unlock()
		if p != nil {
			p.reapedWith(ws)
		}
	}
}

// reapOwn leaves the children of others in this program alone.
func (t *processTable) reapOwn() {
	t.mu.Lock()
	var live []*process
	for _, p := range t.byPID {
		if !p.isReaped() {
			live = append(live, p)
		}
	}
	t.mu.Unlock()
	for _, p := range live {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(p.pid, &ws, syscall.WNOHANG, nil)
		if err == nil && pid == p.pid {
			p.reapedWith(ws)
		}
	}
}

// fork starts a program with do and enters the process under its pid, whatever
// the order in which its end and its number become known.
func (t *processTable) fork(p *process, do func() (int, error)) error {
	t.mu.Lock()
	t.starting++
	t.mu.Unlock()
	pid, err := do()

	t.mu.Lock()
	var ws syscall.WaitStatus
	var ended bool
	if err == nil {
		p.pid = pid
		t.byPID[pid] = p
		ws, ended = t.early[pid]
	}
	t.starting--
	if t.starting == 0 {
		t.early = nil
	}
	t.mu.Unlock()
	if err != nil {
		return err
	}
	if ended {
		p.reapedWith(ws)
	} else {
		select { // its SIGCHLD may have come before its number was known
		case t.wake <- syscall.SIGCHLD:
		default:
		}
	}
	return nil
}

// retire keeps an ended process for late connects.
func (t *processTable) retire(p *process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = append(t.ended, p)
	if len(t.ended) > maxEnded {
		t.dropLocked(t.ended[0])
	}
	time.AfterFunc(endRetention, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.dropLocked(p)
	})
}

func (t *processTable) dropLocked(p *process) {
	for i, e := range t.ended {
		if e == p {
			t.ended = append(t.ended[:i], t.ended[i+1:]...)
			break
		}
	}
	if t.byPID[p.pid] == p {
		delete(t.byPID, p.pid)
	}
}

// byNumber returns a process that runs or, with ended, ended a moment ago.
func (t *processTable) byNumber(pid int, ended bool) (*process, error) {
	t.mu.Lock()
	p := t.byPID[pid]
	t.mu.Unlock()
	if p == nil || (!ended && p.isReaped()) {
		return nil, nacre.Errorf(nacre.CodeNotFound, "process with pid %d not found", pid)
	}
	return p, nil
}

// byTag returns the newest process of that tag.
func (t *processTable) byTag(tag string, ended bool) (*process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found *process
	for _, p := range t.byPID {
		if p.spec.tag == nil || *p.spec.tag != tag || (!ended && p.isReaped()) {
			continue
		}
		if found == nil || p.started.After(found.started) {
			found = p
		}
	}
	if found == nil {
		return nil, nacre.Errorf(nacre.CodeNotFound, "process with tag '%s' not found", validText(tag))
	}
	return found, nil
}

// running lists what runs, by pid.
func (t *processTable) running() []*process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*process
	for _, p := range t.byPID {
		if !p.isReaped() {
			out = append(out, p)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].pid < out[j].pid })
	return out
}

// killGroup sends sig to everything in the process's group.
func killGroup(pid int, sig syscall.Signal) error {
	err := unix.Kill(-pid, sig)
	if err == unix.ESRCH || sig == unix.SIGKILL {
		// It left its group: at least it is reached itself.
		if err2 := unix.Kill(pid, sig); err == unix.ESRCH {
			return err2
		}
	}
	return err
}
