package nacretest

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// Guest speaks to the program in nacretest/testguest, PID 1 of a test's machine.
type Guest struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// GuestReply is what the guest answered: what a command printed, its error, and
// a number.
type GuestReply struct {
	Out, Err string
	N        int64
}

// DialGuest connects to the machine's guest, which may still be booting.
func DialGuest(t testing.TB, m nacre.Machine) *Guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	for {
		c, err := m.Dial(ctx, nacre.AgentPort)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return &Guest{t, c, bufio.NewReader(c)}
		}
		if nacre.IsCode(err, nacre.CodeNotFound) || ctx.Err() != nil {
			t.Fatalf("the guest does not answer: %v", err)
		}
		time.Sleep(time.Millisecond) // nothing on the host says when the guest listens
	}
}

// Send has the guest do something, without waiting for the answer.
func (g *Guest) Send(do string, args ...any) {
	g.t.Helper()
	q := struct {
		Do   string
		Args []string
	}{Do: do}
	for _, a := range args {
		switch a := a.(type) {
		case string:
			q.Args = append(q.Args, a)
		case int:
			q.Args = append(q.Args, strconv.Itoa(a))
		default:
			g.t.Fatalf("argument %v", a)
		}
	}
	b, err := json.Marshal(q)
	if err == nil {
		_, err = g.conn.Write(append(b, '\n'))
	}
	if err != nil {
		g.t.Fatalf("%s: %v", do, err)
	}
}

// Answer reads the next answer; an error means that the guest is gone.
func (g *Guest) Answer() (r GuestReply, err error) {
	_ = g.conn.SetReadDeadline(time.Now().Add(patience()))
	b, err := g.in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// Do has the guest do something that must answer, and not fail.
func (g *Guest) Do(do string, args ...any) GuestReply {
	g.t.Helper()
	r := g.Try(do, args...)
	if r.Err != "" {
		g.t.Fatalf("%s: %s (%s)", do, r.Err, r.Out)
	}
	return r
}

// Try is Do that may fail in the guest.
func (g *Guest) Try(do string, args ...any) GuestReply {
	g.t.Helper()
	g.Send(do, args...)
	r, err := g.Answer()
	if err != nil {
		g.t.Fatalf("%s: no answer: %v", do, err)
	}
	return r
}
