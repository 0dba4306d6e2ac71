package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/nacretest/fakenet"
)

// probe is run inside a sandbox: it tries each of a list of ways out and prints
// what came of it as JSON. "refused" is as good as "closed" for the guest, but an
// answer of somebody is not.
const probe = `
import json, socket, struct, sys
PATIENCE = float(sys.argv[1])
def tcp(a, p):
    f = socket.AF_INET6 if ":" in a else socket.AF_INET
    s = socket.socket(f, socket.SOCK_STREAM); s.settimeout(PATIENCE)
    try:
        s.connect((a, p)); return "open"
    except Exception as e: return "closed: %s" % e
    finally: s.close()
def udp(a, p, data=b"hello"):
    f = socket.AF_INET6 if ":" in a else socket.AF_INET
    s = socket.socket(f, socket.SOCK_DGRAM); s.settimeout(PATIENCE)
    try:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.sendto(data, (a, p)); s.recvfrom(2048); return "open"
    except Exception as e: return "closed: %s" % e
    finally: s.close()
def raw(kind):
    try:
        if kind == "packet": socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)).close()
        else: socket.socket(socket.AF_INET, socket.SOCK_RAW, kind).close()
        return "open"
    except Exception as e: return "closed: %s" % e
def bind(a):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if a == "own":
        s.connect(("1.1.1.1", 7)); a = s.getsockname()[0]; s.close()
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        s.bind((a, 0)); s.settimeout(PATIENCE); s.sendto(b"x", ("1.1.1.1", 7)); s.recvfrom(10); return "open"
    except Exception as e: return "closed: %s" % e
    finally: s.close()
from concurrent.futures import ThreadPoolExecutor
print(json.dumps(list(ThreadPoolExecutor(64).map(lambda t: globals()[t[0]](*t[1:]), json.load(sys.stdin)))))
`

// TestFault40_WhatAGuestReaches: the internet, and nothing of the host, of other
// sandboxes, of private networks; under no other address than its own.
func TestFault40_WhatAGuestReaches(t *testing.T) {
	d := start(t, "--memory-mib", "512", "--standby", "0", "--http", "0.0.0.0:3000", "--https", "0.0.0.0:8443")
	sbs := many(t, d.client(), 2)
	sb, other := sbs[0], sbs[1]
	d.serveInside(other, 8000, "neighbour")
	mine, theirs := d.handles()[sb.ID].Slot, d.handles()[other.ID].Slot
	gateway := mine.Gateway.String()
	l, err := net.Listen("tcp", ":2222") // a service of the host's
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	var ways [][]any
	hosts := []string{gateway, fakenet.HostAddr, "127.0.0.1", "0.0.0.0", mine.Guest.Addr().String()}
	for _, host := range hosts {
		for _, port := range []int{3000, 8443, 2222, 22} {
			ways = append(ways, []any{"tcp", host, port})
		}
	}
	ways = append(ways, []any{"tcp", theirs.Guest.Addr().String(), 8000}, []any{"tcp", theirs.Guest.Addr().String(), 49983},
		[]any{"udp", theirs.Guest.Addr().String(), 8000}, []any{"udp", gateway, 7})
	for _, private := range []string{"169.254.169.254", "10.99.0.1", "192.168.77.1", "172.16.0.1", "100.64.0.1", "169.254.1.1", fakenet.Neighbour, "198.18.0.1", "240.0.0.1"} {
		ways = append(ways, []any{"tcp", private, 80}, []any{"udp", private, 7}, []any{"udp", private, 53})
	}
	for _, v6 := range []string{"::1", "::ffff:169.254.169.254", "::ffff:" + gateway, "fd00:ec2::254", "2606:4700:4700::1111", "fe80::1", "ff02::1", "64:ff9b::a9fe:a9fe"} {
		ways = append(ways, []any{"tcp", v6, 80}, []any{"tcp", v6, 3000}, []any{"udp", v6, 7})
	}
	for _, many := range []string{"224.0.0.1", "224.0.0.251", "239.255.255.250", "255.255.255.255", "10.231.255.255"} {
		ways = append(ways, []any{"udp", many, 7}, []any{"udp", many, 5353})
	}
	for _, kind := range []any{1, 6, 17, 255, "packet"} {
		ways = append(ways, []any{"raw", kind})
	}
	for _, spoofed := range []string{gateway, theirs.Guest.Addr().String(), "1.2.3.4", fakenet.HostAddr} {
		ways = append(ways, []any{"bind", spoofed})
	}
	out := [][]any{{"tcp", "1.1.1.1", 80}, {"udp", "1.1.1.1", 7}, {"bind", "own"}}

	for _, user := range []string{"user", "root"} {
		begin := time.Now()
		for i, r := range tryOut(t, sb, user, slow(patience/2), out) {
			if r != "open" {
				t.Errorf("as %s, %v: %s", user, out[i], r)
			}
		}
		// For an answer that is not to come a busy host has more time too.
		wait := slow(time.Second) + min(time.Since(begin), slow(5*time.Second))
		for i, r := range tryOut(t, sb, user, wait, ways) {
			// A packet of its own making root may send from a kernel of its own; what becomes of
			// it is the network's tests'.
			want := microVMs() && user == "root" && ways[i][0] == "raw"
			if open := r == "open"; open != want {
				t.Errorf("as %s, %v: %s", user, ways[i], r)
			}
		}
	}
	for _, line := range rootMayNot() {
		if res, err := sb.Run(t.Context(), line, client.User("root")); err == nil {
			t.Errorf("root in a guest may %q: %+v", line, res)
		}
	}
	// What the guest is told at the gateway is names, over both transports.
	if res, err := sb.Run(t.Context(), "getent hosts example.com"); err != nil || !strings.HasPrefix(res.Stdout, fakenet.Example) {
		t.Errorf("names: %+v %v", res, err)
	}
	if u, err := url.Parse(d.note().APIURL); err != nil || u.Port() != "3000" {
		t.Errorf("the probe asked for the wrong port: %v", u)
	}
}

// rootMayNot are commands that root in a guest may not do. With a kernel of its own it
// may, and they are of no use: see the tests of the network.
func rootMayNot() []string {
	if microVMs() {
		return nil
	}
	return []string{
		"ip addr add 10.0.0.99/24 dev eth0", "ip link set eth0 address 02:00:00:00:00:99", "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99",
		"ip route add 10.0.0.0/8 dev eth0", "ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0", "mount -t proc none /mnt", "unshare -n true && ip netns add x",
	}
}

// tryOut runs the probe, which waits for each answer so long.
func tryOut(t *testing.T, sb *client.Sandbox, user string, wait time.Duration, ways [][]any) (results []string) {
	t.Helper()
	in, err := json.Marshal(ways)
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Files.WriteFile(t.Context(), "/tmp/probe.py", []byte(probe)); err != nil {
		t.Fatal(err)
	}
	res, err := sb.Run(t.Context(), fmt.Sprintf("python3 /tmp/probe.py %g", wait.Seconds()), client.User(user), client.Stdin(bytes.NewReader(in)), client.Timeout(slow(time.Minute)))
	if err != nil {
		t.Fatalf("the probe: %v\n%+v", err, res)
	}
	if err := json.Unmarshal([]byte(res.Stdout), &results); err != nil || len(results) != len(ways) {
		t.Fatalf("the probe said %q: %v", res.Stdout, err)
	}
	return results
}
