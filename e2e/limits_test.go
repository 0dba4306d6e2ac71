package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
)

// TestFault21_Overcommit: what does not fit is refused with the reason, and what
// runs is not hurt.
func TestFault21_Overcommit(t *testing.T) {
	for _, limit := range []struct {
		name, reason string
		fits         int
		args         []string
	}{
		{"sandboxes", "runs 3 sandboxes and may run 3", 3, []string{"--max-sandboxes", "3", "--memory-mib", "256"}},
		{"memory", "memory", 2, memoryFor(t, 2, 1024)},
		{"team", "3", 3, []string{"--max-sandboxes-per-team", "3", "--memory-mib", "256"}},
	} {
		t.Run(limit.name, func(t *testing.T) {
			d := start(t, append(limit.args, "--standby", "0")...)
			c := d.client()
			var mu sync.Mutex
			var made []*client.Sandbox
			var wg sync.WaitGroup
			for range limit.fits + 5 {
				wg.Go(func() {
					sb, err := c.Create(t.Context())
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						made = append(made, sb)
					case !errors.Is(err, client.ErrRateLimited) || !strings.Contains(err.Error(), limit.reason):
						t.Errorf("a create too many: %v", err)
					}
				})
			}
			wg.Wait()
			if len(made) != limit.fits {
				t.Fatalf("%d sandboxes were made, and %d fit", len(made), limit.fits)
			}
			a := d.call(d.note().APIKey, http.MethodPost, "/sandboxes", map[string]any{"templateID": "base"})
			var body struct {
				Code    int
				Message string
			}
			if err := a.decode(&body); err != nil || a.Status != 429 || body.Code != 429 || body.Message == "" || a.Header.Get("Retry-After") == "" {
				t.Errorf("on the wire: %s %v", a, a.Header)
			}
			each(t, made, func(ctx context.Context, _ int, sb *client.Sandbox) error {
				_, err := sb.Run(ctx, "true")
				return err
			})
			if err := made[0].Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Create(t.Context()); err != nil {
				t.Errorf("there is room again: %v", err)
			}
			d.agree()
		})
	}
}

// memoryFor returns the settings with which n sandboxes of that size fit this
// host, and one more does not.
func memoryFor(t *testing.T, n, mib int) []string {
	t.Helper()
	total := float64(hostMemory(t) >> 20)
	return []string{"--memory-mib", fmt.Sprint(mib), "--memory-overcommit", fmt.Sprintf("%.6f", (float64(n)+0.5)*float64(mib)/total)}
}

// TestFault27_CreatesAndKillsAtOnce: whatever meets whatever, records and machines
// agree in the end, and nothing is left.
func TestFault27_CreatesAndKillsAtOnce(t *testing.T) {
	d := prepared(t, "--memory-mib", "256", "--standby", "2")
	d.ownBinary()
	d.up()
	c, inst, key := d.client(), d.instance(), d.note().APIKey
	before := d.settled(inst, 2)
	kill := func(id string) int {
		a, err := d.ask(t.Context(), http.MethodDelete, "/sandboxes/"+id, nil, as("X-API-Key", key))
		if err != nil {
			t.Error(err)
		}
		return a.Status
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 6)
	run := func(fn func()) {
		slots <- struct{}{}
		wg.Go(func() { fn(); <-slots })
	}
	for i := range 30 {
		switch i % 3 {
		case 0: // killed three times at once
			run(func() {
				sb, err := c.Create(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				var kills sync.WaitGroup
				codes := make([]int, 3)
				for k := range codes {
					kills.Go(func() { codes[k] = kill(sb.ID) })
				}
				kills.Wait()
				ended := 0
				for _, code := range codes {
					if code == 204 {
						ended++
					} else if code != 404 {
						t.Errorf("one of three kills: %d", code)
					}
				}
				if ended == 0 {
					t.Errorf("none of three kills ended it: %v", codes)
				}
				if code := kill(sb.ID); code != 404 {
					t.Errorf("a late kill: %d", code)
				}
			})
		case 1: // whoever wanted it has gone
			run(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(300))*time.Millisecond)
				defer cancel()
				_, _ = c.Create(ctx)
			})
		case 2: // killed by its metadata, maybe while it is made
			run(func() {
				mark := map[string]string{"n": fmt.Sprint(i)}
				stop := make(chan struct{})
				var hunter sync.WaitGroup
				hunter.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						for info, err := range c.List(t.Context(), client.Metadata(mark)) {
							if err != nil {
								t.Error(err)
								return
							}
							kill(info.ID)
						}
					}
				})
				if sb, err := c.Create(t.Context(), client.Metadata(mark)); err == nil {
					d.outcome(sb.ID)
				} else if !errors.Is(err, client.ErrConflict) && !errors.Is(err, client.ErrNotFound) && !errors.Is(err, client.ErrUnavailable) {
					t.Errorf("a create that was killed: %v", err)
				}
				close(stop)
				hunter.Wait()
			})
		}
	}
	wg.Wait()
	d.eventually(patience, func() error {
		d.agree()
		for info, err := range c.List(t.Context()) { // of those whose maker had gone, as they come to be
			if err != nil {
				return err
			}
			if code := kill(info.ID); code != 204 && code != 404 {
				t.Errorf("%s: %d", info.ID, code)
			}
		}
		if now := d.settled(inst, 2); now.String() != before.String() {
			return fmt.Errorf("left behind:\nbefore %s\nafter  %s", before, now)
		}
		return nil
	})
}

// TestFault33_SlowClients: requests that never end and connections that say
// nothing cost little, and others are served.
func TestFault33_SlowClients(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	c := d.client()
	sb := many(t, c, 1)[0]
	if _, err := sb.Run(t.Context(), "true"); err != nil {
		t.Fatal(err)
	}
	pid := d.cmd.Process.Pid
	before, files := rss(t, pid), openFiles(t, pid)
	addr := strings.TrimPrefix(d.note().APIURL, "http://")
	const idle, slow = 1500, 500
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			conn.Close()
		}
	}()
	for i := range idle + slow {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, conn)
		if i < slow { // half a header
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-A: "); err != nil {
				t.Fatal(err)
			}
		}
	}
	drip := time.NewTicker(500 * time.Millisecond)
	defer drip.Stop()
	for range 4 {
		<-drip.C
		for _, conn := range conns[:slow] {
			_, _ = io.WriteString(conn, "a")
		}
		if _, err := sb.Run(t.Context(), "true"); err != nil {
			t.Fatalf("a command meanwhile: %v", err)
		}
	}
	cost := float64(rss(t, pid)-before) / (idle + slow) / 1024
	t.Logf("a connection costs %.1f KiB", cost)
	if cost > 64 {
		t.Errorf("a connection costs the server %.1f KiB", cost)
	}
	// The header has to come within 15 seconds of the connection's first byte: a byte now
	// and then keeps none open.
	over := make(chan struct{})
	go func() {
		defer close(over)
		if resp, err := http.ReadResponse(bufio.NewReader(conns[0]), nil); err == nil {
			resp.Body.Close()
		}
	}()
	for late := time.After(40 * time.Second); ; {
		select {
		case <-drip.C:
			_, _ = io.WriteString(conns[0], "a")
			continue
		case <-over:
		case <-late:
			t.Error("a request whose header does not come is waited for")
		}
		break
	}
	for _, conn := range conns {
		conn.Close()
	}
	d.eventually(patience, func() error {
		if now := openFiles(t, pid); now > files+16 {
			return fmt.Errorf("%d files are open, and %d were", now, files)
		}
		return nil
	})
}
