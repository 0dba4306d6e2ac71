package firecracker

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/pidfd"
	"github.com/nacrehq/nacre/internal/sparse"
	"github.com/nacrehq/nacre/internal/thread"
)

// Files of a machine, as its VMM sees them from inside the jail. A snapshot is
// bound to the drives' and the socket's names.
const (
	kernelName = "vmlinux"
	initName   = "init.erofs"
	rootName   = "root.erofs"
	upperName  = "upper.ext4"
	vsockName  = "vsock"
	apiName    = "api.sock"
	stateName  = "restore.vmstate" // of a snapshot that is restored
	memName    = "restore.mem"
	saveDir    = "save" // of one that is taken
)

// jail is where a machine's VMM lives: a directory that becomes its root.
type jail struct {
	base string // given to the jailer
	root string
	uid  int
}

// machineUser is a user that no other machine has, but by a chance of one in 2^28;
// then the two are kept apart by their jails alone. The numbers are between those
// that systemd gives to containers and the end of the positive ones.
func machineUser(id nacre.MachineID) int {
	h := fnv.New32a()
	h.Write([]byte(id))
	return 0x70000000 | int(h.Sum32()&0x0fffffff)
}

// jailOf is the machine's jail. The jailer puts it at BASE/PROGRAM/ID/root.
func (r *Runtime) jailOf(id nacre.MachineID, stateDir string) jail {
	base := filepath.Join(stateDir, "jail")
	return jail{base: base, root: filepath.Join(base, filepath.Base(r.cfg.Firecracker), string(id), "root"), uid: machineUser(id)}
}

func (j jail) make() error {
	if err := os.MkdirAll(filepath.Join(j.root, saveDir), 0o755); err != nil {
		return err
	}
	for _, d := range []string{"", saveDir} {
		if err := os.Chown(filepath.Join(j.root, d), j.uid, j.uid); err != nil {
			return err
		}
	}
	return nil
}

// bring puts a file that machines share into the jail. The VMM may read it.
func (j jail) bring(src, name string) error {
	st, err := os.Stat(src)
	if err != nil {
		return err
	}
	// The link is the same file: whoever may come by its other name is decided there
	// by directories of mode 0700.
	if st.Mode().Perm()&0o004 == 0 {
		if err := os.Chmod(src, st.Mode().Perm()|0o444); err != nil {
			return err
		}
	}
	return sparse.Share(src, filepath.Join(j.root, name))
}

// own puts a file of the machine's own into the jail. The VMM may write to it.
func (j jail) own(src, name string) error {
	if err := os.Chown(src, j.uid, j.uid); err != nil {
		return err
	}
	if err := os.Link(src, filepath.Join(j.root, name)); err != nil {
		return fmt.Errorf("the machine's disk and its state directory must be on one file system: %w", err)
	}
	return nil
}

// start has the jailer start the VMM, in the machine's cgroup and slot.
func (r *Runtime) startVMM(ctx context.Context, j jail, spec nacre.MachineSpec, g *cgroup.Group) (*pidfd.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out := null
	if r.cfg.Debug {
		if out, err = os.OpenFile(filepath.Join(spec.StateDir, consoleFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
			return nil, err
		}
		defer out.Close()
	}
	uid := strconv.Itoa(j.uid)
	args := []string{r.cfg.Jailer, "--id", string(spec.ID), "--exec-file", r.cfg.Firecracker,
		"--uid", uid, "--gid", uid, "--chroot-base-dir", j.base, "--netns", spec.Slot.Path, "--new-pid-ns",
		"--resource-limit", "no-file=1024", "--", "--api-sock", "/" + apiName}
	p, err := r.startIn(g, program{path: r.cfg.Jailer, args: args, env: []string{}, files: []*os.File{null, out, out}})
	if err != nil {
		return nil, err
	}
	// The jailer ends when the VMM is there.
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() })
	state, err := p.Wait()
	stop()
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !state.Success() {
		return nil, fmt.Errorf("the jailer failed: %s", state)
	}
	return findVMM(ctx, j, filepath.Base(r.cfg.Firecracker))
}

// program is one that is started beside a machine's VMM, or starts it.
type program struct {
	path      string
	args, env []string
	files     []*os.File
	pidFD     *int // see syscall.SysProcAttr
}

// startIn starts a program in the machine's cgroup, as the first of a session.
func (r *Runtime) startIn(g *cgroup.Group, what program) (p *os.Process, err error) {
	attr := &syscall.SysProcAttr{Setsid: true, PidFD: what.pidFD}
	if r.cgroup.V2() {
		dir, err := os.Open(g.Dir(""))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	err = thread.Do(func() error {
		if !r.cgroup.V2() {
			if err := g.JoinThread(); err != nil {
				return err
			}
		}
		var err error
		p, err = os.StartProcess(what.path, what.args, &os.ProcAttr{Env: what.env, Files: what.files, Sys: attr})
		return err
	})
	return p, err
}

// findVMM takes hold of the process whose number the jailer left.
func findVMM(ctx context.Context, j jail, name string) (*pidfd.Process, error) {
	for {
		b, err := os.ReadFile(filepath.Join(j.root, name+".pid"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if pid, perr := strconv.Atoi(strings.TrimSpace(string(b))); perr == nil && pid > 1 {
			start, err := pidfd.StartTime(pid)
			if err != nil {
				return nil, fmt.Errorf("the VMM has ended at once: %w", err)
			}
			// The number is no other process's: a cgroup is new and holds this one.
			p, err := pidfd.Find(pid, start)
			if err == nil && p == nil {
				err = errors.New("the VMM has ended at once")
			}
			return p, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}

// remove takes the jail away.
func (j jail) remove() error {
	// A file of a snapshot that failed may still have its blocks held by nobody else.
	return os.RemoveAll(j.base)
}

// saved opens the directory that the VMM writes snapshots to. All around it is the VMM's,
// which is not trusted: no link leads out, and nothing that is no directory holds us up.
func (j jail) saved() (*os.File, error) {
	root, err := os.OpenRoot(j.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.OpenFile(saveDir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
}
