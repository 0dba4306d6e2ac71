package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// What the log may cost. Output beyond maxLogRate is passed to its readers as
// ever, but only counted in the log.
const (
	maxLogBytes  = 1 << 20
	maxLogLine   = 16 << 10
	maxLogRate   = 256 << 10 // bytes a second, of all processes together
	entryBytes   = 160       // what an entry costs beside its text, roughly
	maxLogFields = 4 << 10   // of one command line
)

// logRing keeps the newest entries of the guest's log.
type logRing struct {
	max int

	mu      sync.Mutex
	entries []nacre.LogEntry // oldest first
	bytes   int
	seq     int64
	grown   chan struct{} // closed and replaced on each entry

	clock  func() time.Time
	second int64 // the current second, and what it has taken
	taken  int
}

func newLogRing(max int) *logRing {
	return &logRing{max: max, grown: make(chan struct{}), clock: time.Now}
}

func (l *logRing) add(e nacre.LogEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	e.Seq = l.seq
	if e.Time.IsZero() {
		e.Time = l.clock().UTC()
	}
	l.entries = append(l.entries, e)
	l.bytes += sizeOf(e)
	drop := 0
	for l.bytes > l.max && drop < len(l.entries)-1 {
		l.bytes -= sizeOf(l.entries[drop])
		l.entries[drop] = nacre.LogEntry{}
		drop++
	}
	l.entries = l.entries[drop:]
	close(l.grown)
	l.grown = make(chan struct{})
}

func sizeOf(e nacre.LogEntry) int {
	n := entryBytes + len(e.Message)
	for k, v := range e.Fields {
		n += len(k) + len(v)
	}
	return n
}

// forget drops every entry. Seq goes on: who follows the log loses its place in no case.
func (l *logRing) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries, l.bytes = nil, 0
}

// after returns the entries that follow seq, and what to wait on for more.
func (l *logRing) after(seq int64, most int) ([]nacre.LogEntry, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.entries) == 0 || l.seq <= seq {
		return nil, l.grown
	}
	first := max(0, int(seq-l.entries[0].Seq+1))
	out := l.entries[first:]
	if len(out) > most {
		out = out[:most]
	}
	return append([]nacre.LogEntry(nil), out...), l.grown
}

// newest is the Seq of the last entry.
func (l *logRing) newest() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// allow takes n bytes of this second's allowance, all or none.
func (l *logRing) allow(n int) bool {
	now := l.clock().Unix()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now != l.second {
		l.second, l.taken = now, 0
	}
	if l.taken+n > maxLogRate {
		return false
	}
	l.taken += n
	return true
}

func (l *logRing) processStart(p *process) {
	command := cut(strings.Join(p.spec.argv, " "), maxLogFields)
	fields := map[string]string{"pid": strconv.Itoa(p.pid), "command": command}
	if p.spec.tag != nil && *p.spec.tag != "" {
		fields["tag"] = cut(*p.spec.tag, maxLogFields)
	}
	l.add(nacre.LogEntry{Type: nacre.LogProcessStart, Message: "process started: " + command, Fields: fields})
}

func (l *logRing) processEnd(p *process) {
	message := "process ended: " + p.end.GetStatus()
	if p.timedOut.Load() {
		message = "process ended: its time was over, " + p.end.GetStatus()
	}
	l.add(nacre.LogEntry{
		Type: nacre.LogProcessEnd, Message: message,
		Fields: map[string]string{"pid": strconv.Itoa(p.pid), "process_result": processResult(p.end)},
	})
}

// cut shortens text to n bytes of valid UTF-8.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "..."
	}
	return validText(s)
}

// lineLogger splits one stream into log lines. A firehose costs it no more than
// counting.
type lineLogger struct {
	partial []byte
	dropped int64
}

func (ll *lineLogger) add(pm *pump, data []byte) {
	logs := pm.p.logs
	if !logs.allow(len(data)) {
		ll.dropped += int64(len(ll.partial) + len(data))
		ll.partial = nil
		return
	}
	if ll.dropped > 0 {
		// Go on with a whole line, after the note of what is missing.
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			ll.dropped += int64(len(data))
			return
		}
		ll.dropped += int64(i + 1)
		data = data[i+1:]
		ll.noteDropped(pm)
	}
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			room := maxLogLine - len(ll.partial)
			if len(data) < room {
				ll.partial = append(ll.partial, data...)
				return
			}
			ll.emit(pm, data[:room])
			data = data[room:]
			continue
		}
		line := data[:i]
		data = data[i+1:]
		for len(ll.partial)+len(line) > maxLogLine {
			room := maxLogLine - len(ll.partial)
			ll.emit(pm, line[:room])
			line = line[room:]
		}
		ll.emit(pm, line)
	}
}

func (ll *lineLogger) emit(pm *pump, rest []byte) {
	line := rest
	if len(ll.partial) > 0 {
		line = append(ll.partial, rest...)
	}
	ll.partial = nil
	pm.p.logs.add(nacre.LogEntry{
		Type: pm.logType(), Message: validText(strings.TrimSuffix(string(line), "\r")),
		Fields: map[string]string{"pid": strconv.Itoa(pm.p.pid)},
	})
}

func (ll *lineLogger) noteDropped(pm *pump) {
	if ll.dropped == 0 {
		return
	}
	pm.p.logs.add(nacre.LogEntry{
		Type:    pm.logType(),
		Message: fmt.Sprintf("[%d bytes were not logged: too much output at once]", ll.dropped),
		Fields:  map[string]string{"pid": strconv.Itoa(pm.p.pid), "dropped_bytes": strconv.FormatInt(ll.dropped, 10)},
	})
	ll.dropped = 0
}

// flush logs what is left at the end of a stream.
func (ll *lineLogger) flush(pm *pump) {
	if len(ll.partial) > 0 {
		ll.emit(pm, nil)
	}
	ll.noteDropped(pm)
}

func (pm *pump) logType() nacre.LogType {
	if pm.kind == streamStderr {
		return nacre.LogStderr
	}
	return nacre.LogStdout
}

// handleLogs streams entries as JSON lines until the host goes away or, with
// until=now, those that there are.
func (a *Agent) handleLogs(w http.ResponseWriter, r *http.Request) {
	after := int64(0)
	if s := r.URL.Query().Get("after"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			writeError(w, http.StatusBadRequest, "after is not a sequence number")
			return
		}
		after = n
	}
	end := int64(math.MaxInt64)
	if r.URL.Query().Get("until") == "now" {
		end = a.logs.newest()
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	if rc.Flush() != nil {
		return
	}
	enc := json.NewEncoder(w)
	for after < end {
		entries, grown := a.logs.after(after, 256)
		for _, e := range entries {
			if enc.Encode(e) != nil {
				return
			}
			after = e.Seq
		}
		if len(entries) > 0 {
			if rc.Flush() != nil {
				return
			}
			continue
		}
		if end != math.MaxInt64 {
			return // they were forgotten
		}
		select {
		case <-grown:
		case <-r.Context().Done():
			return
		}
	}
}
