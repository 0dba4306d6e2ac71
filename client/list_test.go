package client

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/nacrehq/nacre"
)

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestWire1_4_MetadataIsEscapedTwice(t *testing.T) {
	var query string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { query = r.URL.RawQuery; io.WriteString(w, "[]") })
	for _, err := range c.List(t.Context(), Metadata(map[string]string{"a b": "c&d=é+1"}), States(nacre.StateRunning, nacre.StatePaused)) {
		t.Fatal(err)
	}
	want := "limit=100&metadata=a%252520b%3Dc%252526d%25253D%2525C3%2525A9%25252B1&state=running%2Cpaused"
	if query != want {
		t.Errorf("got  %s\nwant %s", query, want)
	}
}

func TestWire1_4_PagesUntilNoToken(t *testing.T) {
	requests := 0
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests++
		page, _ := strconv.Atoi(r.URL.Query().Get("nextToken"))
		if page < 2 {
			w.Header().Set("x-next-token", strconv.Itoa(page+1))
		}
		fmt.Fprintf(w, `[{"sandboxID":"i%d0","state":"running","startedAt":"2026-11-22T10:00:00.123456Z","cpuCount":2},{"sandboxID":"i%d1","state":"paused"}]`, page, page)
	})
	list := c.List(t.Context())
	for range 2 { // a sequence may be gone through again
		var ids []string
		for info, err := range list {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, info.ID)
		}
		if fmt.Sprint(ids) != "[i00 i01 i10 i11 i20 i21]" {
			t.Errorf("%v", ids)
		}
	}
	requests = 0
	for info, err := range list {
		if err != nil || info.State != nacre.StateRunning || info.CPUCount != 2 || info.StartedAt.Nanosecond() != 123456000 {
			t.Errorf("%+v %v", info, err)
		}
		break
	}
	if requests != 1 {
		t.Errorf("leaving the loop early made %d requests", requests)
	}
}

func TestListEndsWithAnError(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("nextToken") != "" {
			w.WriteHeader(401)
			io.WriteString(w, `{"code":401,"message":"revoked"}`)
			return
		}
		w.Header().Set("x-next-token", "2")
		io.WriteString(w, `[{"sandboxID":"i1"}]`)
	})
	var last error
	n := 0
	for _, err := range c.List(t.Context()) {
		n++
		last = err
	}
	if n != 2 || !errors.Is(last, ErrUnauthenticated) {
		t.Errorf("%d elements, %v", n, last)
	}
}

// logServer answers as the wire says: an inclusive cursor in milliseconds.
func logServer(entries func() []time.Time, ended func() bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sandboxes/i1" {
			if ended() {
				w.WriteHeader(404)
				io.WriteString(w, `{"code":404,"message":"ended"}`)
				return
			}
			io.WriteString(w, `{"sandboxID":"i1","state":"running"}`)
			return
		}
		cursor, _ := strconv.ParseInt(r.URL.Query().Get("cursor"), 10, 64)
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		type entry struct {
			Timestamp time.Time `json:"timestamp"`
			EventType string    `json:"eventType"`
			Message   string    `json:"message"`
		}
		out := struct {
			LogEntries []entry `json:"logEntries"`
		}{[]entry{}}
		for i, at := range entries() {
			if at.UnixMilli() >= cursor && len(out.LogEntries) < limit {
				out.LogEntries = append(out.LogEntries, entry{at, "stdout", strconv.Itoa(i)})
			}
		}
		_ = json.NewEncoder(w).Encode(out)
	}
}

func TestLogsReadEveryEntryOnce(t *testing.T) {
	var entries []time.Time
	c := serve(t, logServer(func() []time.Time { return entries }, func() bool { return true }))
	rapid.Check(t, func(rt *rapid.T) {
		entries = nil
		at := time.Unix(1_800_000_000, 0)
		for range rapid.IntRange(0, 8).Draw(rt, "bursts") {
			at = at.Add(time.Duration(rapid.IntRange(1, 3_000_000).Draw(rt, "gap")))
			for range rapid.IntRange(1, logPage-1).Draw(rt, "burst") {
				entries = append(entries, at)
			}
			at = at.Truncate(time.Millisecond).Add(time.Millisecond)
		}
		next := 0
		for e, err := range c.Logs(t.Context(), "i1") {
			if err != nil {
				rt.Fatal(err)
			}
			if e.Message != strconv.Itoa(next) {
				rt.Fatalf("entry %s where %d was expected", e.Message, next)
			}
			next++
		}
		if next != len(entries) {
			rt.Fatalf("%d of %d entries", next, len(entries))
		}
	})
}

func TestLogsFollowUntilTheEnd(t *testing.T) {
	base := time.Unix(1_800_000_000, 0)
	n, over := 1, false
	c := serve(t, logServer(func() []time.Time {
		out := make([]time.Time, n)
		for i := range out {
			out[i] = base.Add(time.Duration(i) * 100 * time.Microsecond)
		}
		return out
	}, func() bool { return over }))
	var got []string
	for e, err := range c.Logs(t.Context(), "i1", func(q *logQuery) { q.follow = time.Millisecond }) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Message)
		if n < 25 {
			n++ // one more while it is being read
		} else {
			over = true
		}
	}
	if len(got) != 25 || got[24] != "24" {
		t.Errorf("%v", got)
	}
}

func TestLogQuery(t *testing.T) {
	var query url.Values
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		query = r.URL.Query()
		io.WriteString(w, `{"logEntries":[]}`)
	})
	for range c.Logs(t.Context(), "i1", LogsFrom(time.UnixMilli(1234)), LogsOf(nacre.LogStderr)) {
		t.Error("an entry out of nothing")
	}
	if query.Encode() != "cursor=1234&direction=forward&eventType=stderr&limit=1000" {
		t.Error(query.Encode())
	}
}
