// Command guest is PID 1 of a machine in tests of its network. It listens on the
// agent's port; each line says how long to try and what, each answer is "ok", with
// what came back, or an error:
//
//	2s tcp <address:port>       an echo over TCP
//	2s udp <address:port>       over UDP
//	2s get <address> <bytes>    that many bytes through the echo, and how long it took
//	2s dns <server:port> <name> the name's IPv4 addresses
//	2s say <address:port> <text> over UDP, of which nothing comes back
//	2s raw <source> <address:port> <text> the same from another address, or its "own"
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/nacretest/fakenet/frame"
)

func main() {
	l, err := net.Listen("tcp4", ":49983") // nacre.AgentPort
	if err != nil {
		os.Exit(71)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(72)
		}
		go func() {
			defer c.Close()
			for in := bufio.NewScanner(c); in.Scan(); {
				out, err := try(strings.Fields(in.Text()))
				if err != nil {
					fmt.Fprintln(c, err)
					continue
				}
				fmt.Fprintln(c, strings.TrimSpace("ok "+out))
			}
		}()
	}
}

func try(q []string) (string, error) {
	if len(q) < 3 {
		return "", fmt.Errorf("unknown: %q", q)
	}
	patience, err := time.ParseDuration(q[0])
	if err != nil {
		return "", err
	}
	switch q = q[1:]; {
	case len(q) == 2 && (q[0] == "tcp" || q[0] == "udp"):
		return "", echo(q[0], q[1], patience)
	case len(q) == 3 && q[0] == "get":
		n, err := strconv.ParseInt(q[2], 10, 64)
		if err != nil {
			return "", err
		}
		return get(q[1], n, patience)
	case len(q) == 3 && q[0] == "dns":
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, proto, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, proto, q[1])
		}}
		ips, err := r.LookupIP(ctx, "ip4", q[2])
		return fmt.Sprint(ips), err
	case len(q) == 3 && q[0] == "say":
		c, err := net.Dial("udp4", q[1])
		if err != nil {
			return "", err
		}
		defer c.Close()
		_, err = io.WriteString(c, q[2])
		return "", err
	case len(q) == 4 && q[0] == "raw":
		return "", raw(q[1], q[2], q[3])
	}
	return "", fmt.Errorf("unknown: %q", q)
}

func echo(proto, addr string, patience time.Duration) error {
	c, err := net.DialTimeout(proto, addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	buf := make([]byte, 5)
	_, err = io.ReadFull(c, buf)
	return err
}

func get(addr string, n int64, patience time.Duration) (string, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	began := time.Now()
	go func() {
		buf := make([]byte, 256<<10)
		for sent := int64(0); sent < n; sent += int64(len(buf)) {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	_, err = io.CopyN(io.Discard, c, n)
	return time.Since(began).String(), err
}

// raw sends through the gateway, which was spoken with before.
func raw(from, to, text string) error {
	dst, err := netip.ParseAddrPort(to)
	if err != nil {
		return err
	}
	if from == "own" {
		c, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		c.Close()
		from = c.LocalAddr().(*net.UDPAddr).IP.String()
	}
	src, err := netip.ParseAddr(from)
	if err != nil {
		return err
	}
	gateway, err := neighbour()
	if err != nil {
		return err
	}
	return frame.Send(gateway, unix.ETH_P_IP, frame.IPv4UDP(src, dst, text))
}

// neighbour is the hardware address of whoever is at the other end of the link; all
// gateways of slots have the same one.
func neighbour() (net.HardwareAddr, error) {
	b, _ := os.ReadFile("/proc/net/arp")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 6 && f[2] != "0x0" && f[5] == "eth0" {
			return net.ParseMAC(f[3])
		}
	}
	return net.HardwareAddr{0x02, 0x6e, 0, 0, 0, 1}, nil
}
