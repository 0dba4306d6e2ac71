package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

const (
	logReaders  = 4       // queries that read files at once
	maxLogLimit = 1000    // entries of one answer
	maxLogLine  = 1 << 20 // bytes of one entry on disk; a longer message is cut

	// What one guest may make this host write, over time and at once.
	logBytesPerSecond = 4 << 20
	logBurst          = 8 << 20
)

// logStore keeps one sandbox's log in "<sandbox>.ndjson" and the part before it in
// "<sandbox>.1.ndjson". Its files are reached through an os.Root: no id leads out.
type logStore struct {
	root    *os.Root
	max     int64 // bytes of one file
	readers chan struct{}
}

// logLine is an entry on disk. Machine tells the runs of a sandbox apart.
type logLine struct {
	Machine nacre.MachineID `json:"m"`
	nacre.LogEntry
}

func openLogStore(dir string, max int64) (*logStore, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	return &logStore{root: root, max: max, readers: make(chan struct{}, logReaders)}, nil
}

func (s *logStore) Close() error { return s.root.Close() }

func logName(id nacre.SandboxID) string    { return string(id) + ".ndjson" }
func logOldName(id nacre.SandboxID) string { return string(id) + ".1.ndjson" }

// logTail is the writing end of one sandbox's log. The file is opened by the first
// entry. One collector writes; anybody may ask.
type logTail struct {
	store   *logStore
	id      nacre.SandboxID
	machine nacre.MachineID
	from    *lineage // of a restored machine; not changed

	mu     sync.Mutex
	loaded bool
	file   *os.File
	size   int64
	seq    int64     // of the machine's last entry on disk
	last   time.Time // of the last entry on disk
	// known are entries of an earlier machine that the snapshot which this one goes on
	// from has too, by Seq: their times in microseconds.
	known map[int64]int64
}

// tail returns the writing end of a machine's log.
func (s *logStore) tail(id nacre.SandboxID, m nacre.MachineID, from *lineage) *logTail {
	return &logTail{store: s, id: id, machine: m, from: from}
}

// position returns the Seq of the last entry that is kept.
func (t *logTail) position() (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seq, t.load()
}

// load finds where an earlier process stopped, and cuts a line that it did not
// finish; t.mu is held.
func (t *logTail) load() error {
	if t.loaded {
		return nil
	}
	if t.from != nil {
		t.seq = t.from.LogSeq
		if err := t.remember(); err != nil {
			return err
		}
	}
	data, err := t.store.root.ReadFile(logName(t.id))
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(data) == 0) {
		var old []byte
		if old, err = t.store.root.ReadFile(logOldName(t.id)); err == nil {
			t.resume(old)
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		t.loaded = err == nil
		return err
	}
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(data, '\n') + 1
	if whole < len(data) {
		f, err := t.store.root.OpenFile(logName(t.id), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = errors.Join(f.Truncate(int64(whole)), f.Close())
		if err != nil {
			return err
		}
	}
	t.size = int64(whole)
	t.resume(data[:whole])
	t.loaded = true
	return nil
}

// remember notes what the log has of the time after LogSeq, from its end on.
func (t *logTail) remember() error {
	t.known = map[int64]int64{}
	for _, name := range []string{logName(t.id), logOldName(t.id)} {
		data, err := t.store.root.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for len(data) > 0 {
			data = bytes.TrimSuffix(data, []byte("\n"))
			begin := bytes.LastIndexByte(data, '\n') + 1
			var l logLine
			if json.Unmarshal(data[begin:], &l) == nil {
				if l.Machine == t.from.Machine && l.Seq <= t.from.LogSeq {
					return nil
				}
				if l.Machine != t.machine && l.Seq > t.from.LogSeq {
					t.known[l.Seq] = l.Time.UnixMicro()
				}
			}
			data = data[:begin]
		}
	}
	return nil
}

func (t *logTail) resume(data []byte) {
	data = bytes.TrimSuffix(data, []byte("\n"))
	var l logLine
	if json.Unmarshal(data[bytes.LastIndexByte(data, '\n')+1:], &l) == nil {
		t.last = l.Time
		if l.Machine == t.machine {
			t.seq = l.Seq
		}
	}
}

// write appends one entry and returns its size. Times come from the guest: they
// are held between the last entry's and now, and grow, so that a file is sorted.
func (t *logTail) write(e nacre.LogEntry, now time.Time) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return 0, err
	}
	if e.Seq <= t.seq {
		return 0, nil // known already
	}
	if at, ok := t.known[e.Seq]; ok && at == e.Time.UnixMicro() {
		t.seq = e.Seq
		return 0, nil
	}
	if e.Time.After(now) {
		e.Time = now
	}
	if !e.Time.After(t.last) {
		e.Time = t.last.Add(time.Microsecond)
	}
	e.Time = e.Time.UTC().Truncate(time.Microsecond)
	if len(e.Message) > maxLogLine/8 {
		e.Message = strings.ToValidUTF8(e.Message[:maxLogLine/8], "\uFFFD") + "...[cut]"
	}
	line, err := json.Marshal(logLine{t.machine, e})
	if err != nil {
		return 0, err
	}
	line = append(line, '\n')
	if t.size > 0 && t.size+int64(len(line)) > t.store.max {
		if err := t.rotate(); err != nil {
			return 0, err
		}
	}
	if t.file == nil {
		t.file, err = t.store.root.OpenFile(logName(t.id), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return 0, err
		}
	}
	if _, err := t.file.Write(line); err != nil {
		_ = t.file.Truncate(t.size) // no half line; a full disk lets go of space
		return 0, err
	}
	t.size += int64(len(line))
	t.seq, t.last = e.Seq, e.Time
	return len(line), nil
}

func (t *logTail) rotate() error {
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
	if err := t.store.root.Rename(logName(t.id), logOldName(t.id)); err != nil {
		return err
	}
	t.size = 0
	return nil
}

func (t *logTail) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
}

// collect copies the guest's log to disk until the machine ends, from a moment after
// its start on: the guest keeps the log until it is asked for, and what cannot be
// written now (a full disk).
func (n *Node) collect(u *unit) {
	defer u.tail.close()
	if !u.alone(logAfter) {
		return
	}
	budget, refilled := float64(logBurst), time.Now()
	pause := 10 * time.Millisecond
	var complained time.Time
	for u.life.Err() == nil && !u.hasEnded() {
		after, err := u.tail.position()
		if err == nil {
			err = u.agent.Logs(u.life, after, func(e nacre.LogEntry) error {
				size, err := u.tail.write(e, n.cfg.Clock())
				pause = 10 * time.Millisecond
				now := time.Now()
				budget = min(logBurst, budget+now.Sub(refilled).Seconds()*logBytesPerSecond) - float64(size)
				refilled = now
				if err == nil && budget < 0 {
					err = sleep(u.life, time.Duration(-budget/logBytesPerSecond*float64(time.Second)))
				}
				return err
			})
		}
		if err != nil && u.life.Err() == nil && !u.hasEnded() && time.Since(complained) > time.Minute {
			complained = time.Now()
			n.log.Warn("a sandbox's log is interrupted", "sandbox", u.spec.Sandbox, "err", err)
		}
		select {
		case <-u.ended:
		case <-u.life.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// drainLog takes over what is left of the log of a sandbox that is about to be
// stopped: until the guest has said that this was all, or ctx ends. What it says is no
// more than an honest guest keeps.
func (n *Node) drainLog(ctx context.Context, u *unit) {
	if u.hasEnded() || u.tail == nil {
		return
	}
	defer u.tail.close() // a collector that goes on opens it again
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(u.life, cancel)()
	after, err := u.tail.position()
	if err == nil {
		left := logBurst
		err = u.agent.LogsSoFar(ctx, after, func(e nacre.LogEntry) error {
			size, err := u.tail.write(e, n.cfg.Clock())
			if left -= size; err == nil && left < 0 {
				err = errors.New("the guest says more than it can have kept")
			}
			return err
		})
	}
	if err != nil && !u.hasEnded() {
		n.log.Debug("the last lines of a sandbox's log are missing", "sandbox", u.spec.Sandbox, "err", err)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Logs returns entries of a sandbox; see nacre.Telemetry.
func (n *Node) Logs(ctx context.Context, id nacre.SandboxID, q nacre.LogQuery) ([]nacre.LogEntry, error) {
	if !id.Valid() {
		return nil, nil
	}
	if q.Limit <= 0 || q.Limit > maxLogLimit {
		q.Limit = maxLogLimit
	}
	select {
	case n.logs.readers <- struct{}{}:
		defer func() { <-n.logs.readers }()
	case <-ctx.Done():
		return nil, nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the log was not read in time")
	}
	names := []string{logOldName(id), logName(id)}
	if q.Backward {
		names[0], names[1] = names[1], names[0]
	}
	out := []nacre.LogEntry{}
	for _, name := range names {
		data, err := n.logs.root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nacre.Wrap(nacre.CodeUnavailable, err, "the log could not be read; try again")
		}
		if out = selectLines(out, data, q); len(out) >= q.Limit {
			break
		}
	}
	return out, nil
}

// selectLines appends what q selects of one file, which is sorted by time.
func selectLines(out []nacre.LogEntry, data []byte, q nacre.LogQuery) []nacre.LogEntry {
	lines := bytes.Split(data[:bytes.LastIndexByte(data, '\n')+1], []byte("\n"))
	lines = lines[:len(lines)-1]
	entry := func(i int) (e nacre.LogEntry) {
		_ = json.Unmarshal(lines[i], &e) // a broken line is the zero entry
		return e
	}
	at, step := 0, 1
	if !q.After.IsZero() && !q.Backward {
		at = sort.Search(len(lines), func(i int) bool { return entry(i).Time.After(q.After) })
	}
	if q.Backward {
		at, step = len(lines)-1, -1
		if !q.After.IsZero() {
			at = sort.Search(len(lines), func(i int) bool { return !entry(i).Time.Before(q.After) }) - 1
		}
	}
	for ; at >= 0 && at < len(lines) && len(out) < q.Limit; at += step {
		if e := entry(at); !e.Time.IsZero() && (q.Type == "" || e.Type == q.Type) {
			out = append(out, e)
		}
	}
	return out
}

// purge deletes logs that were last written before the time.
func (s *logStore) purge(before time.Time, keep func(nacre.SandboxID) bool) error {
	dir, err := s.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			id, _, _ := strings.Cut(e.Name(), ".")
			info, ierr := e.Info()
			if ierr != nil || !info.ModTime().Before(before) || keep(nacre.SandboxID(id)) {
				continue
			}
			if err := s.root.Remove(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
