package kvmhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
)

// A test inside has the host around it do things, such as to run a client that is
// installed there. What it asks goes out by the console, and the answer comes in by a
// connection, of which QEMU's network of one card allows this direction only: nothing
// inside reaches anything outside.
const (
	askMark  = "KVMHOST-ASK "
	askPort  = 999
	guestNet = "10.0.2.15/24"
	routerIP = "10.0.2.2"
)

type question struct {
	Name string
	Args []string
}

type answer struct{ Out, Err string }

// Request is what the host around an emulated one is asked.
type Request struct {
	Args []string
	// Addrs are where Config.Ports of the emulated host are reached.
	Addrs map[int]string
}

// Outside calls Config.Outer's function of that name on the host around this one.
func Outside(ctx context.Context, name string, args ...string) (string, error) {
	l, err := net.Listen("tcp4", ":"+strconv.Itoa(askPort))
	if err != nil {
		return "", err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	b, err := json.Marshal(question{name, args})
	if err != nil {
		return "", err
	}
	fmt.Printf("\n%s%s\n", askMark, b)
	c, err := l.Accept()
	if err != nil {
		return "", errors.Join(context.Cause(ctx), err)
	}
	defer c.Close()
	var a answer
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return "", err
	}
	if a.Err != "" {
		return a.Out, errors.New(a.Err)
	}
	return a.Out, nil
}

// card brings up the network of a host that has one. It leaves the usual name of a link
// and a better default route to a test that brings an internet of its own.
func card() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().Name == "lo" {
			continue
		}
		addr, err := netlink.ParseAddr(guestNet)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetName(l, "card"), netlink.AddrAdd(l, addr), netlink.LinkSetUp(l),
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(routerIP), Priority: 1000}))
	}
	return nil
}

// forward is QEMU's option of a network card, and where the ports are reached.
func forward(ports []int) (option string, addrs map[int]string, err error) {
	option, addrs = "user,id=net,restrict=on", map[int]string{}
	for _, p := range append([]int{askPort}, ports...) {
		l, err := net.Listen("tcp4", "127.0.0.1:0") // QEMU does not tell a port that it chose
		if err != nil {
			return "", nil, err
		}
		addrs[p] = l.Addr().String()
		defer l.Close()
		option += fmt.Sprintf(",hostfwd=tcp:%s-:%d", addrs[p], p)
	}
	return option, addrs, nil
}

// reply does what a test inside asks for.
func (m *machine) reply(ctx context.Context, text string, addrs map[int]string) {
	var q question
	var a answer
	err := json.Unmarshal([]byte(text), &q)
	if err == nil {
		f := m.cfg.Outer[q.Name]
		if f == nil {
			err = fmt.Errorf("the host around has no %q", q.Name)
		} else {
			a.Out, err = f(ctx, Request{Args: q.Args, Addrs: addrs})
		}
	}
	if err != nil {
		a.Err = err.Error()
	}
	c, err := (&net.Dialer{Timeout: time.Minute}).DialContext(ctx, "tcp4", addrs[askPort])
	if err == nil {
		err = json.NewEncoder(c).Encode(a)
		c.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "emulated host: the answer to", q.Name, "is lost:", err)
	}
}
