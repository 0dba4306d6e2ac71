package agent_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent"
	"github.com/nacrehq/nacre/agent/envd"
	"github.com/nacrehq/nacre/nacretest"
)

// guest is a real agent on a real TCP listener, with accounts of its own.
type guest struct {
	addr    string // host:port
	root    string // a directory that everybody can enter
	home    string // of "user"
	rootDir string // home of "root"
	dir     string // belongs to "user"
}

// newGuest needs root, for a user's processes run as that user.
func newGuest(t testing.TB) *guest {
	t.Helper()
	return newGuestBehind(t, func(ln net.Listener) net.Listener { return ln })
}

// newGuestBehind is newGuest on the listener that wrap makes.
func newGuestBehind(t testing.TB, wrap func(net.Listener) net.Listener) *guest {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the agent starts processes as other users")
	}
	root, err := os.MkdirTemp("", "nacre-agent-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	root, err = filepath.EvalSymlinks(root)
	must(t, err)
	must(t, os.Chmod(root, 0o755))
	g := &guest{root: root, home: root + "/home/user", rootDir: root + "/root", dir: root + "/dir"}
	for _, d := range []string{g.home, g.rootDir, g.dir} {
		must(t, os.MkdirAll(d, 0o755))
	}
	must(t, os.Chown(g.home, 1000, 1000))
	must(t, os.Chown(g.dir, 1000, 1000))
	passwd := fmt.Sprintf("root:x:0:0:root:%s:/bin/bash\n# comment\nbroken line\nuser:x:1000:1000::%s:/bin/bash\nhomeless:x:1001:1001::/missing/home:/bin/sh\n", g.rootDir, g.home)
	must(t, os.WriteFile(root+"/passwd", []byte(passwd), 0o644))
	must(t, os.WriteFile(root+"/group", []byte("root:x:0:\nuser:x:1000:\nextra:x:1234:root,user\n"), 0o644))

	a := agent.New(agent.Config{PasswdPath: root + "/passwd", GroupPath: root + "/group", DiskPath: root})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	g.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- a.Serve(wrap(ln)) }()
	t.Cleanup(func() {
		a.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (g *guest) dial(ctx context.Context, _ int) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", g.addr)
}

func (g *guest) client(t testing.TB, hostToken, accessToken string) *envd.Client {
	c := envd.New(envd.Options{Dial: g.dial, HostToken: hostToken, AccessToken: accessToken})
	t.Cleanup(c.Close)
	return c
}

// initialised returns a client of a guest whose tokens are "host" and accessToken.
func (g *guest) initialised(t testing.TB, accessToken string) *envd.Client {
	t.Helper()
	c := g.client(t, "host", accessToken)
	must(t, c.Init(context.Background(), nacre.AgentInit{HostToken: "host", AccessToken: accessToken}))
	return c
}

// TestVisitorUnlogged: what the host runs in a guest before it is anybody's, in the
// manner of an SDK, is not in the log of who gets the guest.
func TestVisitorUnlogged(t *testing.T) {
	c := newGuest(t).initialised(t, "token")
	v := c.Visitor()
	t.Cleanup(v.(*envd.Client).Close)
	s, err := v.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", "echo ok"}, Unlogged: true})
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	for event := (nacre.ProcessEvent{}); event.Exit == nil; {
		event, err = s.Next()
		must(t, err)
	}
	must(t, c.LogsSoFar(t.Context(), 0, func(e nacre.LogEntry) error {
		t.Errorf("in the log: %+v", e)
		return nil
	}))
}

func TestAgentContract(t *testing.T) {
	nacretest.TestAgent(t, func(t *testing.T) nacretest.AgentGuest {
		g := newGuest(t)
		return nacretest.AgentGuest{
			Client: func(host, access string) nacre.Agent { return g.client(t, host, access) },
			User:   "user", Home: g.home, Dir: g.dir,
		}
	})
}
