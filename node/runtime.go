package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nacrehq/nacre"
)

// complete gives the shape its one form: one that boots says what its machines are made
// of, for one that is restored the snapshot does.
func (n *Node) complete(s Shape) Shape {
	switch {
	case s.Snapshot != "":
		s.Runtime = ""
	case s.Runtime == "":
		s.Runtime = n.cfg.Runtime.Name()
	}
	return s
}

// keeps tells whether snapshots can be taken of the unit's machine.
func (n *Node) keeps(u *unit) bool {
	can, ok := n.cfg.Runtime.Capabilities().Of(u.runtime)
	return ok && can.Snapshots
}

// mayRecover refuses to take stock while machines run that no driver here knows: they
// would be taken for lost, and their sandboxes end.
func (n *Node) mayRecover(files []handleFile) error {
	can := n.cfg.Runtime.Capabilities()
	for name, run := range n.handles.running(files) {
		if _, ok := can.Of(name); !ok {
			return nacre.Errorf(nacre.CodeConflict, "%s on the runtime %q, which is not open here; nothing was touched", run, name)
		}
	}
	return nil
}

// Running counts machines that an earlier process left running.
type Running struct{ Sandboxes, Standbys int }

func (r Running) String() string {
	if r.Sandboxes == 0 {
		return fmt.Sprintf("%d standbys run", r.Standbys)
	}
	if r.Sandboxes == 1 {
		return "1 sandbox runs"
	}
	return fmt.Sprintf("%d sandboxes run", r.Sandboxes)
}

// RunningOn reads, and does not change, what the handles of Config.HandleDir tell:
// which drivers' machines run, unless they ended unseen since. It is for whoever has
// to open the drivers before there is a node.
func RunningOn(handleDir string) (map[nacre.RuntimeName]Running, error) {
	s := handleStore{dir: handleDir, bootID: hostBootID()}
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var files []handleFile
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") {
			if h, err := readHandle(filepath.Join(s.dir, e.Name())); err == nil {
				files = append(files, h)
			}
		}
	}
	return s.running(files), err
}

// running counts, by driver, the machines that neither ended nor went with the host.
func (s handleStore) running(files []handleFile) map[nacre.RuntimeName]Running {
	out := map[nacre.RuntimeName]Running{}
	for _, f := range files {
		if f.Exit != nil || f.BootID != s.bootID || f.Handle.Runtime == "" {
			continue
		}
		r := out[f.Handle.Runtime]
		if f.Spec != nil {
			r.Sandboxes++
		} else {
			r.Standbys++
		}
		out[f.Handle.Runtime] = r
	}
	return out
}
