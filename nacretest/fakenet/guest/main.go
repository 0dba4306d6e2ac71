// Command guest is PID 1 of a machine in tests of its network. It listens on the
// agent's port; each line is something to try, each answer is "ok", with what
// came back, or an error:
//
//	tcp <address:port>       an echo over TCP
//	udp <address:port>       over UDP
//	get <address> <bytes>    that many bytes through the echo, and how long it took
//	dns <server:port> <name> the name's IPv4 addresses
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const patience = 2 * time.Second

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
	switch {
	case len(q) == 2 && (q[0] == "tcp" || q[0] == "udp"):
		return "", echo(q[0], q[1])
	case len(q) == 3 && q[0] == "get":
		n, err := strconv.ParseInt(q[2], 10, 64)
		if err != nil {
			return "", err
		}
		return get(q[1], n)
	case len(q) == 3 && q[0] == "dns":
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		defer cancel()
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, proto, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, proto, q[1])
		}}
		ips, err := r.LookupIP(ctx, "ip4", q[2])
		return fmt.Sprint(ips), err
	}
	return "", fmt.Errorf("unknown: %q", q)
}

func echo(proto, addr string) error {
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

func get(addr string, n int64) (string, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
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
