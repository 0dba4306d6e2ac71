package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// pausedAt finds the snapshot that each paused sandbox goes on from.
func (d *daemon) pausedAt() map[string]string {
	d.t.Helper()
	files, err := filepath.Glob(d.path("snapshots", "manifests", "*.json"))
	if err != nil {
		d.t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range files {
		var m nacre.SnapshotManifest
		text, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		if err != nil {
			d.t.Fatal(err)
		}
		out[string(m.Sandbox)] = string(m.ID)
	}
	return out
}

// alter changes a file in place.
func alter(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	is := change(bytes.Clone(was))
	if bytes.Equal(was, is) {
		t.Fatalf("%s is as it was", path)
	}
	if err := os.WriteFile(path, is, 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(b []byte) []byte { b[len(b)/2] ^= 4; return b }

func half(b []byte) []byte { return b[:len(b)/2] }

// TestFault25_DamagedSnapshotIsRefused: what is cut off, altered, or of another
// version, driver or processor is refused with the reason, nothing is started from it,
// and the sandbox stays paused. One that is whole comes back beside them.
func TestFault25_DamagedSnapshotIsRefused(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	c := d.client()
	key := regexp.MustCompile(`gvisor/([^/]+)/([^/]+)/([0-9a-f]{12})`)
	rekey := func(to string) func([]byte) []byte {
		return func(b []byte) []byte { return key.ReplaceAll(b, []byte(to)) }
	}
	const damaged, misfit = "is damaged", "does not fit this host"
	cases := []struct {
		name   string
		damage func(plain, manifest string)
		want   string // that a snapshot is
		says   string
	}{
		{"memory cut off", func(p, _ string) { alter(t, p+"/pages.img", half) }, damaged, "pages.img"},
		{"kernel cut off", func(p, _ string) { alter(t, p+"/kernel.img", half) }, damaged, "kernel.img"},
		{"a bit of the kernel", func(p, _ string) { alter(t, p+"/kernel.img", flip) }, damaged, "kernel.img"},
		{"a bit of where pages belong", func(p, _ string) { alter(t, p+"/pages-meta.img", flip) }, damaged, "pages-meta.img"},
		{"a file is missing", func(p, _ string) {
			if err := os.Remove(p + "/pages-meta.img"); err != nil {
				t.Fatal(err)
			}
		}, damaged, "pages-meta.img"},
		{"no description", func(p, _ string) { alter(t, p+"/snapshot.json", half) }, damaged, "snapshot.json"},
		{"another format", func(p, _ string) {
			alter(t, p+"/snapshot.json", func(b []byte) []byte { return bytes.Replace(b, []byte(`"Version":`), []byte(`"Version":9`), 1) })
		}, misfit, "format 9"},
		{"another version of the driver", func(p, m string) {
			alter(t, p+"/snapshot.json", rekey("gvisor/v0.0.1/$2/$3"))
			alter(t, m, rekey("gvisor/v0.0.1/$2/$3"))
		}, misfit, "v0.0.1"},
		{"another processor", func(p, m string) {
			alter(t, p+"/snapshot.json", rekey("gvisor/$1/$2/0123456789ab"))
			alter(t, m, rekey("gvisor/$1/$2/0123456789ab"))
		}, misfit, "0123456789ab"},
		{"another architecture", func(p, m string) {
			alter(t, p+"/snapshot.json", rekey("gvisor/$1/riscv/$3"))
			alter(t, m, rekey("gvisor/$1/riscv/$3"))
		}, misfit, "riscv"},
		{"another processor, told by the files alone", func(p, _ string) {
			alter(t, p+"/snapshot.json", rekey("gvisor/$1/$2/0123456789ab"))
		}, misfit, "0123456789ab"},
		{"nothing", func(string, string) {}, "", ""},
	}
	sbs := many(t, c, len(cases))
	for i, sb := range sbs {
		if err := entrust(t.Context(), sb, "kept"); err != nil {
			t.Fatal(err)
		}
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatal(i, err)
		}
	}
	d.stop() // the chunks behind the plain files may be written still
	at := d.pausedAt()
	for i, sb := range sbs {
		id := at[sb.ID]
		cases[i].damage(d.path("snapshots", "plain", id), d.path("snapshots", "manifests", id+".json"))
	}
	d.up()
	for i, sb := range sbs {
		t.Run(cases[i].name, func(t *testing.T) {
			err := sb.Resume(t.Context())
			if cases[i].want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := remembers(t.Context(), sb, "kept"); err != nil {
					t.Error(err)
				}
				if err := sb.Pause(t.Context()); err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, client.ErrConflict) || !strings.Contains(err.Error(), cases[i].want) || !strings.Contains(err.Error(), cases[i].says) {
				t.Errorf("resumed: %v", err)
			}
			if info, err := sb.Info(t.Context()); err != nil || info.State != nacre.StatePaused {
				t.Errorf("afterwards it is %+v, %v", info, err)
			}
			if n := len(d.handles()); n != 0 {
				t.Errorf("%d machines run", n)
			}
		})
	}
	for _, sb := range sbs {
		if err := sb.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestFault25_RestoreToADamagedSnapshot: a sandbox that is to go back to a snapshot
// that is damaged goes on as it is, with what it did since.
func TestFault25_RestoreToADamagedSnapshot(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	sb := many(t, d.client(), 1)[0]
	snap, err := sb.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := entrust(t.Context(), sb, "since"); err != nil {
		t.Fatal(err)
	}
	alter(t, d.path("snapshots", "plain", snap.ID, "pages.img"), half)
	for _, state := range []nacre.State{nacre.StateRunning, nacre.StatePaused} {
		if state == nacre.StatePaused {
			if err := sb.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := sb.Restore(t.Context(), snap.ID); !errors.Is(err, client.ErrConflict) || !strings.Contains(err.Error(), "pages.img") {
			t.Errorf("restored while %s: %v", state, err)
		}
		if info, err := sb.Info(t.Context()); err != nil || info.State != state {
			t.Errorf("afterwards it is %+v, %v", info, err)
		}
	}
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := remembers(t.Context(), sb, "since"); err != nil {
		t.Error(err)
	}
}
