package gvisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// containerManager stands before a sandbox's server of the same name and fails some
// checkpoints, as gVisor's own does when a packet for the guest comes in meanwhile.
type containerManager struct {
	real  *urpc.Client
	fails int
	says  string
}

func (c *containerManager) Pause(_, _ *struct{}) error {
	return c.real.Call(boot.ContMgrPause, nil, nil)
}

func (c *containerManager) Resume(_, _ *struct{}) error {
	return c.real.Call(boot.ContMgrResume, nil, nil)
}

func (c *containerManager) Checkpoint(o *control.SaveOpts, _ *struct{}) error {
	if c.fails > 0 {
		c.fails--
		for _, f := range o.Files {
			_, _ = f.WriteString("the beginning of a checkpoint")
		}
		return errors.New(c.says)
	}
	return c.real.Call(boot.ContMgrCheckpoint, o, nil)
}

// before puts the server before the machine's.
func (c *containerManager) before(t *testing.T, m *machine) {
	t.Helper()
	var err error
	c.real, err = dialControl(m.st.Dir)
	check(t, err)
	t.Cleanup(func() { c.real.Close() })
	path := filepath.Join(m.st.Dir, socketFile)
	check(t, os.Rename(path, path+".real"))
	f, err := bindControl(m.st.Dir)
	check(t, err)
	l, err := unet.NewServerSocket(int(f.Fd()))
	check(t, err)
	check(t, l.Listen())
	s := urpc.NewServer()
	s.Register(c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.StartHandling(conn)
		}
	}()
	t.Cleanup(func() {
		check(t, l.Close())
		<-done
		s.Stop(0)
		f.Close()
	})
}

// TestSnapshotBesidePackets: gVisor's kernel is not quite still while it is written,
// so that a packet may end the walk through it. Then it is walked through again, the
// guest comes to no harm, and what fails for another reason fails at once.
func TestSnapshotBesidePackets(t *testing.T) {
	const raced = "encoding error: reflect: call of reflect.Value.Type on zero Value"
	r := newRuntime(t)
	for _, c := range []struct {
		fails int
		says  string
		works bool
	}{{checkpointTries - 1, raced, true}, {checkpointTries, raced, false}, {1, "kernel is gone", false}} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%.14s %d %t", c.says, c.fails, keep), func(t *testing.T) {
				m := start(t, r, newSpec(t))
				g := nacretest.DialGuest(t, m)
				g.Do("keep", 2)
				(&containerManager{fails: c.fails, says: c.says}).before(t, m)
				dir := t.TempDir()
				_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: keep})
				if (err == nil) != c.works {
					t.Fatal(err)
				}
				check(t, m.Resume(t.Context()))
				g.Do("kept")
				if !c.works {
					if left, _ := os.ReadDir(dir); len(left) > 0 {
						t.Errorf("left %v", left)
					}
					return
				}
				check(t, r.VerifySnapshot(t.Context(), dir))
				spec := newSpec(t)
				restored, err := r.Restore(t.Context(), spec, dir)
				check(t, err)
				stopLater(t, restored, spec)
				nacretest.DialGuest(t, restored).Do("kept")
			})
		}
	}
}
