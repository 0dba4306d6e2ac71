package miosa

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nacrehq/nacre"
)

// Jobs are processes that nobody waits for: detached commands and terminals. They
// live in the guest, marked with a tag; what is kept here is what they said lately
// and how they ended. After a restart of this server the running ones are found
// by their tags, and what they said before in the sandbox's log.
const (
	jobTag      = "miosa-job:"
	terminalTag = "miosa-terminal:"

	jobsBytes   = 4 << 20   // of output that is kept for one sandbox's jobs
	allJobs     = 512 << 20 // of output that is kept for all
	leastJob    = 16 << 10  // of output that is kept for one job in any case
	endedKept   = 64        // jobs of one sandbox that have ended
	runningMost = 256       // jobs of one sandbox that run
	retryFirst  = 50 * time.Millisecond
	retryMost   = 15 * time.Second
	stopGrace   = 3 * time.Second
	sweepPeriod = time.Minute
)

// jobs is the table of all sandboxes.
type jobs struct {
	api    *API
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	count atomic.Int64 // jobs of all tables

	mu     sync.Mutex
	tables map[nacre.SandboxID]*jobTable
}

func newJobs(a *API) *jobs {
	ctx, cancel := context.WithCancel(context.Background())
	js := &jobs{api: a, ctx: ctx, cancel: cancel, tables: map[nacre.SandboxID]*jobTable{}}
	js.wg.Go(js.sweep)
	return js
}

func (js *jobs) close() error {
	js.mu.Lock()
	js.cancel()
	js.mu.Unlock()
	js.wg.Wait()
	return nil
}

// run follows a job in a goroutine that close waits for; once closed, not at all.
func (js *jobs) run(g *guest, j *job, stream nacre.ProcessStream) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.ctx.Err() == nil {
		js.wg.Go(func() { js.follow(g, j, stream) })
	}
}

// jobTable holds one sandbox's jobs by pid.
type jobTable struct {
	all    *atomic.Int64 // jobs of all tables
	size   atomic.Int64  // of byPID
	mu     sync.Mutex
	loaded bool
	byPID  map[int]*job
}

// job is one process.
type job struct {
	table   *jobTable
	pid     int
	tag     string
	name    string
	command string
	cwd     string
	started time.Time
	limited bool // it has a time limit

	// Who follows it alone uses these.
	out, errs lines            // what has no end of a line yet
	seen      nacre.OutputSeen // what was read of it
	found     *finding         // nil: it was started here

	mu      sync.Mutex
	entries []jobEntry // oldest first
	first   int64      // position of entries[0]
	bytes   int
	done    bool
	code    int
	killed  bool
	ended   time.Time
	changed chan struct{} // closed and replaced on each entry and at the end
}

// jobEntry is a line of output, or a piece of a terminal's.
type jobEntry struct {
	kind string // stdout, stderr, terminal
	text string
}

type startJob struct {
	name, command string
	tag           string // "" means jobTag
	spec          nacre.ProcessSpec
}

// start runs a process and follows it.
func (js *jobs) start(ctx context.Context, g *guest, r startJob) (*job, error) {
	t := js.table(g.id)
	if err := t.load(ctx, js, g); err != nil {
		return nil, err
	}
	if t.running() >= runningMost {
		return nil, nacre.Errorf(nacre.CodeExhausted, "sandbox %s runs %d processes of this API already; end some first", g.id, runningMost)
	}
	if r.tag == "" {
		r.tag = jobTag
	}
	js.api.touch(g.id)
	r.spec.Tag, r.spec.Kept = r.tag+r.name, true
	j := &job{table: t, tag: r.spec.Tag, name: r.name, command: r.command, cwd: r.spec.Cwd, started: js.api.Clock(),
		limited: r.spec.Timeout > 0, changed: make(chan struct{}), out: lines{kind: "stdout"}, errs: lines{kind: "stderr"}}
	if j.cwd == "" {
		j.cwd = workspace
	}
	// The stream outlives the request.
	stream, err := g.start(js.ctx, r.spec)
	if err != nil {
		return nil, err
	}
	j.pid = stream.PID()
	t.put(j)
	js.run(g, j, stream)
	return j, nil
}

func (js *jobs) table(id nacre.SandboxID) *jobTable {
	js.mu.Lock()
	defer js.mu.Unlock()
	t := js.tables[id]
	if t == nil {
		t = &jobTable{all: &js.count, byPID: map[int]*job{}}
		js.tables[id] = t
	}
	return t
}

// get finds a job by its pid; tag is the beginning that its tag must have.
func (js *jobs) get(ctx context.Context, g *guest, pid, tag string) (*job, error) {
	t := js.table(g.id)
	if err := t.load(ctx, js, g); err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(pid)
	t.mu.Lock()
	defer t.mu.Unlock()
	j := t.byPID[n]
	if err != nil || j == nil || !strings.HasPrefix(j.tag, tag) {
		return nil, nacre.Errorf(nacre.CodeNotFound, "sandbox %s has no process %.40q", g.id, pid)
	}
	return j, nil
}

// list returns the jobs of a kind, oldest first.
func (js *jobs) list(ctx context.Context, g *guest, tag string) ([]*job, error) {
	t := js.table(g.id)
	if err := t.load(ctx, js, g); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*job
	for _, j := range t.byPID {
		if strings.HasPrefix(j.tag, tag) {
			out = append(out, j)
		}
	}
	slices.SortFunc(out, func(a, b *job) int { return a.started.Compare(b.started) })
	return out, nil
}

// put adds a job and forgets the oldest of those that have ended.
func (t *jobTable) put(j *job) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byPID[j.pid] = j
	var ended []*job
	for _, x := range t.byPID {
		if x.isDone() {
			ended = append(ended, x)
		}
	}
	slices.SortFunc(ended, func(a, b *job) int { return a.started.Compare(b.started) })
	for _, x := range ended[:max(0, len(ended)-endedKept)] {
		delete(t.byPID, x.pid)
	}
	t.counted()
}

// counted notes how many jobs there are; t.mu is held.
func (t *jobTable) counted() {
	n := int64(len(t.byPID))
	t.all.Add(n - t.size.Swap(n))
}

// share is how much output one job may keep.
func (t *jobTable) share() int {
	return max(leastJob, int(min(jobsBytes/max(8, t.size.Load()), allJobs/max(1, t.all.Load()))))
}

// running counts the jobs that have not ended.
func (t *jobTable) running() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, j := range t.byPID {
		if !j.isDone() {
			n++
		}
	}
	return n
}

// follow reads a job's output until it ends. A sandbox that is paused takes the
// stream away and not the job: then it is connected to again, and what it said
// meanwhile was kept in the guest.
func (js *jobs) follow(g *guest, j *job, stream nacre.ProcessStream) {
	defer j.found.done()
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		if stream == nil {
			var gone bool
			if stream, gone = js.again(g, j); gone {
				j.flush()
				j.end(-1, true)
				return
			}
		}
		if stream != nil {
			if j.read(stream) {
				return
			}
			stream, pause = nil, retryFirst
		}
		select {
		case <-js.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// again connects to a job; gone tells that there is nothing to connect to any more.
func (js *jobs) again(g *guest, j *job) (stream nacre.ProcessStream, gone bool) {
	s, err := js.api.Service.Get(js.ctx, g.team, g.id)
	if err == nil && !s.Alive() || nacre.IsCode(err, nacre.CodeNotFound) {
		return nil, true
	}
	agent, err := js.api.Traffic.Agent(js.ctx, g.id)
	if err != nil {
		return nil, false
	}
	stream, err = agent.Processes().ConnectAfter(js.ctx, j.pid, j.seen)
	if err != nil {
		return nil, nacre.IsCode(err, nacre.CodeNotFound)
	}
	return stream, false
}

// sweep forgets the tables of sandboxes that are gone.
func (js *jobs) sweep() {
	tick := time.NewTicker(sweepPeriod)
	defer tick.Stop()
	for {
		select {
		case <-js.ctx.Done():
			return
		case <-tick.C:
		}
		js.mu.Lock()
		for id, t := range js.tables {
			if _, ok := js.api.Traffic.Route(id); !ok && t.allDone() {
				js.count.Add(-t.size.Load())
				delete(js.tables, id)
			}
		}
		js.mu.Unlock()
	}
}

func (t *jobTable) allDone() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, j := range t.byPID {
		if !j.isDone() {
			return false
		}
	}
	return true
}
